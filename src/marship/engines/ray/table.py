"""Models, versions and applications: what the front is configured with, and clients read there.

Serve keeps it with the front's deployment, and gives it to each of its replicas. A version is an
application of its own, which is never updated in place; the table says which one is the default.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEntry:
    """A version of a model.

    Attributes:
        app: The application that serves it.
        archive: The archive's file name.
        digest: The archive's SHA-256.
        registration: The id of the registration that created it.
        files: A digest of the archive's files, as in `engine.Note`.
        batch_size: Maximum requests in one batch.
        max_batch_delay_ms: As registered; batches on Ray wait for nothing.
        given_batch_size: As given at the registration; None was the archive's.
        given_delay_ms: Likewise.
        timeout_s: How long a batch may take.
        streams: Whether its responses come in parts.
        minimum: The fewest replicas.
        maximum: The most replicas.
    """

    app: str
    archive: str
    digest: str
    registration: str
    files: str | None
    batch_size: int
    max_batch_delay_ms: int
    given_batch_size: int | None
    given_delay_ms: int | None
    timeout_s: float
    streams: bool
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A model: its default version, and its versions by number."""

    default: str
    versions: Mapping[str, TableEntry]


@dataclass(frozen=True, slots=True)
class Table:
    """All models by name."""

    models: Mapping[str, Listed] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "Table":
        """The table in a deployment's `user_config`."""
        models = (value or {}).get("models", {})
        return cls(
            {
                name: Listed(
                    model["default"],
                    {number: TableEntry(**entry) for number, entry in model["versions"].items()},
                )
                for name, model in models.items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {"models": {name: asdict(model) for name, model in self.models.items()}}

    def entry(self, name: str, version: str | None) -> tuple[str, TableEntry] | None:
        """A version, or the default one, with its number; None if there is none."""
        model = self.models.get(name)
        if model is None:
            return None
        number = model.default if version is None else version
        found = model.versions.get(number)
        return None if found is None else (number, found)

    def serving(self, name: str) -> tuple[str, ...]:
        """A model's versions, the default one first."""
        model = self.models.get(name)
        if model is None:
            return ()
        return (model.default, *(one for one in model.versions if one != model.default))

    def entries(self) -> Iterator[tuple[str, str, TableEntry]]:
        """Name, number and entry of every version."""
        for name, model in sorted(self.models.items()):
            for number, entry in sorted(model.versions.items()):
                yield name, number, entry

    def put(self, name: str, version: str, entry: TableEntry) -> "Table":
        """With a version; the first one of a model is its default."""
        model = self.models.get(name, Listed(version, {}))
        return self._with(name, replace(model, versions={**model.versions, version: entry}))

    def default(self, name: str, version: str) -> "Table":
        """With another default version."""
        return self._with(name, replace(self.models[name], default=version))

    def without(self, name: str, version: str) -> "Table":
        """Without a version, and without the model if it was the last."""
        model = self.models[name]
        left = {number: entry for number, entry in model.versions.items() if number != version}
        if left:
            return self._with(name, replace(model, versions=left))
        return Table({other: model for other, model in self.models.items() if other != name})

    def _with(self, name: str, model: Listed) -> "Table":
        return Table({**self.models, name: model})
