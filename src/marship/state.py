"""The models that a server shall have, as a TOML file: what is missing, and how to get there.

    [[model]]
    archive = "recommend-2.mar"   # a file in the model store; it knows its name and version
    workers = 2                   # else as the archive says
    profile = "throughput"        # else as the archive says
    name = "recommend"            # else the archive's own
    default = true                # which of several versions answers

Each entry is one version of a model. What runs and is not in the file stays, unless it is pruned.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from marship import profiles, storage
from marship import rollout as rollouts
from marship.client import Client, Model, ModelStatus
from marship.errors import MarshipError, UsageError
from marship.replay import replay
from marship.torchserve import store

TABLE = "model"
_HEADER = re.compile(rf"\s*\[\[\s*{TABLE}\s*\]\]")

Kind = Literal["register", "scale", "default", "keep", "remove"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model, as the file says it.

    Attributes:
        where: The file and the line, for messages.
        archive: A file name in the model store.
        name: The model's name; None is the archive's own.
        workers: How many; None leaves it to the archive.
        profile: "latency" or "throughput"; None leaves it to the archive.
        default: Whether it answers where no version is named.
    """

    where: str
    archive: str
    name: str | None = None
    workers: int | None = None
    profile: str | None = None
    default: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """An entry whose archive was read.

    Attributes:
        entry: What the file says.
        name: The model's name on the server.
        version: The archive's.
        is_default: Whether it answers where no version is named.
        is_changed: Whether the archive is another than the one that was registered.
    """

    entry: Entry
    name: str
    version: str
    is_default: bool
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do, or to leave.

    Attributes:
        kind: What.
        name: The model.
        version: Its version.
        detail: More for a person.
        entry: Where it is asked for; None for what the file does not name.
    """

    kind: Kind
    name: str
    version: str
    detail: str = ""
    entry: Entry | None = None


def read(path: Path) -> list[Entry]:
    """Read a state file.

    Raises:
        UsageError: It is no such file; the message names the line.
    """
    raw, text = storage.read_toml(path)
    _check_names(raw, [TABLE], str(path))
    tables = raw.get(TABLE, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path} must hold a [[{TABLE}]] for each version, got another {TABLE}.")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    if len(lines) != len(tables):  # written another way
        lines = []
    places = (f"{path}, line {n}" for n in lines) if lines else (f"{path}",) * len(tables)
    return [_entry(table, where) for table, where in zip(tables, places, strict=True)]


def plan(client: Client, entries: Sequence[Entry], *, prune: bool = False) -> list[Change]:
    """What is to be done on a server, in order.

    Args:
        client: Of a server whose home is at hand.
        entries: What shall be.
        prune: Remove what is not among them.

    Raises:
        UsageError: An entry cannot be meant, or a version must be registered anew for it.
        PackageError: An archive is damaged.
    """
    return compare(resolve(client, entries), client.models(), prune=prune)


def resolve(client: Client, entries: Sequence[Entry]) -> list[Version]:
    """Read the archives: their names and versions, and which one of each model answers.

    Raises:
        UsageError: Two entries are the same version, or it is not clear which one answers.
        PackageError: An archive is damaged.
    """
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        with _named(entry):
            archive = rollouts.read(client, entry.archive)
        key = (entry.name or archive.name, archive.version)
        if key in found:
            raise UsageError(
                f"{entry.where} must be a version of its own, got {key[0]} {key[1]} as in "
                f"{found[key].where}. Remove one of them."
            )
        found[key] = entry
    answering = {name: _default_of(name, found) for name in {name for name, _ in found}}
    return [
        Version(
            entry,
            name,
            version,
            is_default=answering[name] == version,
            is_changed=store.has_other_files(client.home, name, version, entry.archive),
        )
        for (name, version), entry in found.items()
    ]


def compare(
    wanted: Sequence[Version], models: Sequence[Model], *, prune: bool = False
) -> list[Change]:
    """What is between what shall be and what is.

    Raises:
        UsageError: A version that runs must be registered anew to be as its entry says.
    """
    there = {(s.name, s.version): s for model in models for s in model.versions}
    defaults = {model.name: model.default_version for model in models}
    wanted = sorted(wanted, key=lambda v: not v.is_default)  # the first one registered answers
    changes = []
    for version in wanted:
        status = there.get((version.name, version.version))
        changes += [_registered(version)] if status is None else _adjusted(version, status)
    for version in wanted:
        was = defaults.get(version.name, version.version)
        if version.is_default and was != version.version:
            changes.append(_change("default", version, f"was {was}"))
    declared = {(version.name, version.version) for version in wanted}
    return changes + [_undeclared(s, prune) for s in _answering_last(there, defaults, declared)]


def carry_out(
    client: Client,
    changes: Iterable[Change],
    watcher: rollouts.Watcher | None = None,
    *,
    timeout_s: float = rollouts.LOAD_TIMEOUT_S,
) -> None:
    """Do what was planned; the first fault ends it, and what was done before stays.

    Raises:
        MarshipError: As the client's methods raise; the message names the entry.
    """
    hand = _Hand(client, watcher or rollouts.Watcher(), timeout_s)
    acts: Mapping[Kind, Callable[[Change], str]] = {
        "register": hand.register,
        "scale": hand.scale,
        "default": hand.set_default,
        "remove": hand.remove,
    }
    for change in changes:
        if change.kind in acts:
            hand.watcher.on_step(f"{change.kind} {change.name} {change.version}")
            with _named(change.entry):
                said = acts[change.kind](change)
            hand.watcher.on_done(change.kind, f"{change.name} {change.version}: {said}")


@dataclass(frozen=True, slots=True)
class _Hand:
    """Does the changes; each says what came of it."""

    client: Client
    watcher: rollouts.Watcher
    timeout_s: float

    def register(self, change: Change) -> str:
        """Register a version and replay its golden cases; one that fails them is taken back."""
        entry = _asked(change)
        status = self.client.register(
            entry.archive,
            name=change.name,
            workers=entry.workers,
            profile=entry.profile,
            timeout_s=self.timeout_s,
            on_wait=self.watcher.on_wait,
        )
        try:
            proof = replay(self.client, rollouts.read(self.client, entry.archive), change.name)
        except BaseException:  # Ctrl-C too
            self.client.unregister(change.name, change.version)
            raise
        return f"workers ready: {status.ready}; {proof}"

    def scale(self, change: Change) -> str:
        """Set the number of workers."""
        workers = _asked(change).workers or 0
        self.client.scale(
            change.name,
            workers,
            version=change.version,
            timeout_s=self.timeout_s,
            on_wait=self.watcher.on_wait,
        )
        return f"workers ready: {workers}"

    def set_default(self, change: Change) -> str:
        """Make a version the one that answers."""
        self.client.set_default(change.name, change.version)
        return "answers"

    def remove(self, change: Change) -> str:
        """Unregister a version; where another answers, not before it has finished its work."""
        (default,) = self.client.describe(change.name)
        if default.version != change.version:
            self.client.drain(change.name, change.version, timeout_s=self.timeout_s)
        self.client.unregister(change.name, change.version)
        return "is gone"


def _asked(change: Change) -> Entry:
    if change.entry is None:
        raise UsageError(f"{change.kind} of {change.name} must come from an entry, got none.")
    return change.entry


def _registered(version: Version) -> Change:
    entry = version.entry
    workers = f"workers: {entry.workers}" if entry.workers else ""
    said = filter(None, (f"from {entry.archive}", workers, entry.profile))
    return _change("register", version, ", ".join(said))


def _adjusted(version: Version, status: ModelStatus) -> list[Change]:
    """What a version that runs needs.

    Raises:
        UsageError: What TorchServe cannot change while it runs.
    """
    entry = version.entry
    advice = "Package another version, or unregister this one first."
    if status.archive != entry.archive:
        raise UsageError(
            f"{entry.where} must name the archive that {version.name} {version.version} runs "
            f"from, {status.archive}, got {entry.archive}. {advice}"
        )
    if version.is_changed:
        raise UsageError(
            f"{entry.where} must name an archive as it was when {version.name} {version.version} "
            f"was registered, got another {entry.archive} by now. {advice}"
        )
    if entry.profile is not None:
        profile = profiles.find(entry.profile)
        batch = (status.batch_size, status.max_batch_delay_ms)
        if batch != (profile.batch_size, profile.max_batch_delay_ms):
            raise UsageError(
                f"{entry.where} must have the batches that {version.name} {version.version} runs "
                f"with, {batch[0]} within {batch[1]} ms, got profile {entry.profile}. {advice}"
            )
    now = {status.min_workers, status.max_workers}
    if entry.workers is None or now == {entry.workers}:
        return []
    return [_change("scale", version, f"workers: {status.min_workers} to {entry.workers}")]


def _change(kind: Kind, version: Version, detail: str) -> Change:
    return Change(kind, version.name, version.version, detail, version.entry)


def _undeclared(status: ModelStatus, prune: bool) -> Change:
    detail = "not in the file" if prune else "not in the file; --prune removes it"
    return Change("remove" if prune else "keep", status.name, status.version, detail)


def _answering_last(
    there: Mapping[tuple[str, str], ModelStatus],
    defaults: Mapping[str, str],
    declared: set[tuple[str, str]],
) -> list[ModelStatus]:
    """What is not declared; TorchServe lets the version that answers go last."""
    undeclared = [status for key, status in there.items() if key not in declared]
    return sorted(undeclared, key=lambda s: (s.name, defaults[s.name] == s.version, s.version))


def _default_of(name: str, found: Mapping[tuple[str, str], Entry]) -> str:
    """The version of a model that answers.

    Raises:
        UsageError: None of several says so, or two do.
    """
    versions = {version: entry for (model, version), entry in found.items() if model == name}
    if len(versions) == 1:
        return next(iter(versions))
    chosen = [version for version, entry in versions.items() if entry.default]
    if len(chosen) != 1:
        places = "; ".join(entry.where for entry in versions.values())
        raise UsageError(
            f"one version of {name} must have default = true, got {len(chosen)} of "
            f"{len(versions)} ({places})."
        )
    return chosen[0]


def _entry(table: Mapping[str, Any], where: str) -> Entry:
    _check_names(table, [item.name for item in fields(Entry) if item.name != "where"], where)
    rules: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "archive": (_is_text, "be the name of a file in the model store"),
        "name": (_is_text, "be a text"),
        "workers": (_is_count, "be a whole number of 1 or more"),
        "profile": (lambda value: value in profiles.PROFILES, "be latency or throughput"),
        "default": (lambda value: isinstance(value, bool), "be true or false"),
    }
    if "archive" not in table:
        raise UsageError(f"{where} must name an archive, got none.")
    for key, value in table.items():
        holds, rule = rules[key]
        if not holds(value):
            raise UsageError(f"{key} in {where} must {rule}, got {value!r}.")
    return Entry(where, **table)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_names(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(known)}."
            raise UsageError(f"{where} must hold known names only, got {name!r}. {hint}")


@contextmanager
def _named(entry: Entry | None) -> Iterator[None]:
    """Let an error say for which entry it is."""
    try:
        yield
    except MarshipError as error:
        if entry is not None:
            error.args = (f"{entry.where}: {error}",)
        raise
