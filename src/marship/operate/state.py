"""Declared state: the models that a server should have, as a TOML file, and applying it.

    [[model]]
    archive = "recommend-2.mar"   # a file in the model store, which has the name and version
    workers = 2                   # default: the archive's
    profile = "throughput"        # default: the archive's
    name = "recommend"            # default: the archive's
    default = true                # required for one of several versions

Each entry is one version of a model. Other versions on the server stay, unless pruned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from marship import profiles
from marship.client.clients import Client, Model, ModelStatus
from marship.errors import MarshipError, NotFoundError, ServerError, UsageError
from marship.operate import rollout as rollouts
from marship.operate.replay import replay
from marship.operate.statefile import Entry

Kind = Literal["register", "scale", "default", "keep", "remove"]


@dataclass(frozen=True, slots=True)
class Version:
    """An entry, with what was read from its archive.

    Attributes:
        entry: The entry of the file.
        name: The model's name on the server.
        version: The archive's.
        is_default: Whether it is the model's default version.
        is_changed: Whether the archive differs from the one that was registered.
    """

    entry: Entry
    name: str
    version: str
    is_default: bool
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A change to the server, or a version that is kept.

    Attributes:
        kind: The kind of change.
        name: The model.
        version: Its version.
        detail: A description.
        entry: The entry that requires it; None for versions that are not in the file.
        registration: For a removal: the version's registration id at planning.
        successor: For a removal: the version that must be the default then, if one is declared.
    """

    kind: Kind
    name: str
    version: str
    detail: str = ""
    entry: Entry | None = None
    registration: str = ""
    successor: str | None = None


def plan(client: Client, entries: Sequence[Entry], *, prune: bool = False) -> list[Change]:
    """The changes that bring a server to the declared state, in order.

    Args:
        client: The server's client.
        entries: The declared state.
        prune: Remove versions that are not declared.

    Raises:
        UsageError: An entry is invalid, or would need a version to be registered again.
        PackageError: An archive is corrupted.
    """
    return compare(resolve(client, entries), client.models(), prune=prune)


@contextmanager
def planned(
    client: Client,
    entries: Sequence[Entry],
    *,
    prune: bool = False,
    watcher: rollouts.RolloutListener | None = None,
    timeout_s: float = rollouts.LOAD_TIMEOUT_S,
) -> Iterator[list[Change]]:
    """The plan, while holding the locks of these models against other rollouts and plans.

    Raises:
        ServerError: Another one takes longer than `timeout_s`.
        MarshipError: As `plan`.
    """
    watcher = watcher or rollouts.RolloutListener()
    wanted = resolve(client, entries)
    names = {version.name for version in wanted}
    if prune:
        names |= {model.name for model in client.models()}
    with rollouts.version_locks(client, names, timeout_s=timeout_s, watcher=watcher) as has_waited:
        if has_waited:
            wanted = resolve(client, entries)
        yield compare(wanted, client.models(), prune=prune)


def resolve(client: Client, entries: Sequence[Entry]) -> list[Version]:
    """Read the archives: names, versions, and the default version of each model.

    Raises:
        UsageError: Two entries are the same version, or the default version is ambiguous.
        PackageError: An archive is corrupted.
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
    default = {name: _default_of(name, found) for name in {name for name, _ in found}}
    return [
        Version(
            entry,
            name,
            version,
            is_default=default[name] == version,
            is_changed=client.engine.has_other_files(name, version, entry.archive),
        )
        for (name, version), entry in found.items()
    ]


def compare(
    wanted: Sequence[Version], models: Sequence[Model], *, prune: bool = False
) -> list[Change]:
    """Changes that bring the server to the declared state.

    Raises:
        UsageError: An entry would need a running version to be registered again.
    """
    there = {(s.name, s.version): s for model in models for s in model.versions}
    defaults = {model.name: model.default_version for model in models}
    wanted = sorted(
        wanted, key=lambda v: not v.is_default
    )  # the first one registered becomes the default
    changes = []
    for version in wanted:
        status = there.get((version.name, version.version))
        changes += [_registered(version)] if status is None else _adjusted(version, status)
    for version in wanted:
        was = defaults.get(version.name, version.version)
        if version.is_default and was != version.version:
            changes.append(_change("default", version, f"was {was}"))
    declared = {(version.name, version.version) for version in wanted}
    default = {version.name: version.version for version in wanted if version.is_default}
    undeclared = _default_last(there, defaults, declared)
    return changes + [_undeclared(s, prune, default.get(s.name)) for s in undeclared]


def carry_out(
    client: Client,
    changes: Iterable[Change],
    watcher: rollouts.RolloutListener | None = None,
    *,
    timeout_s: float = rollouts.LOAD_TIMEOUT_S,
) -> None:
    """Apply the changes; stops at the first error, and keeps what was applied before.

    Raises:
        MarshipError: As the client's methods; the message names the entry.
    """
    applier = _Applier(client, watcher or rollouts.RolloutListener(), timeout_s)
    acts: Mapping[Kind, Callable[[Change], str]] = {
        "register": applier.register,
        "scale": applier.scale,
        "default": applier.set_default,
        "remove": applier.remove,
    }
    for change in changes:
        if change.kind in acts:
            applier.watcher.on_step(f"{change.kind} {change.name} {change.version}")
            with _named(change.entry):
                details = acts[change.kind](change)
            applier.watcher.on_done(change.kind, f"{change.name} {change.version}: {details}")


@dataclass(frozen=True, slots=True)
class _Applier:
    """Applies changes; each method returns a description of the result."""

    client: Client
    watcher: rollouts.RolloutListener
    timeout_s: float

    def register(self, change: Change) -> str:
        """Register a version and replay its golden cases; undo it if they fail."""
        entry = _entry_of(change)
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
            self.client.withdraw(status, leaves_last=True)
            raise
        return f"workers ready: {status.ready}; {proof}"

    def scale(self, change: Change) -> str:
        """Set the number of workers."""
        workers = _entry_of(change).workers or 0
        self.client.scale(
            change.name,
            workers,
            version=change.version,
            timeout_s=self.timeout_s,
            on_wait=self.watcher.on_wait,
        )
        return f"workers ready: {workers}"

    def set_default(self, change: Change) -> str:
        """Make a version the default."""
        self.client.set_default(change.name, change.version)
        return "answers"

    def remove(self, change: Change) -> str:
        """Unregister a version, unless another client has done so already."""
        try:
            self._remove(change)
        except NotFoundError:
            return "was unregistered already"
        return "is unregistered"

    def _remove(self, change: Change) -> None:
        """Drain a version, unless it is the default, and unregister it.

        Raises:
            NotFoundError: It is not there any more.
            ServerError: The server's models have changed since this was planned.
        """
        if self._default_version(change) != change.version:
            self.client.drain(change.name, change.version, timeout_s=self.timeout_s)
        default = self._default_version(change)
        (status,) = self.client.describe(change.name, change.version)
        is_as_planned = change.successor in (None, default)
        if not is_as_planned or status.registration != change.registration:
            raise ServerError(
                f"{change.name} must be as it was when {change.version} was planned to go, got "
                f"it changed by another client: {default} is the default. Run apply again."
            )
        self.client.unregister(change.name, change.version)

    def _default_version(self, change: Change) -> str:
        return self.client.describe(change.name)[0].version


def _entry_of(change: Change) -> Entry:
    if change.entry is None:
        raise UsageError(f"{change.kind} of {change.name} must come from an entry, got none.")
    return change.entry


def _registered(version: Version) -> Change:
    entry = version.entry
    workers = f"workers: {entry.workers}" if entry.workers else ""
    details = filter(None, (f"from {entry.archive}", workers, entry.profile))
    return _change("register", version, ", ".join(details))


def _adjusted(version: Version, status: ModelStatus) -> list[Change]:
    """The changes that a running version needs.

    Raises:
        UsageError: A difference that TorchServe cannot change at run time.
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
    if entry.workers is None:
        return []
    if {status.min_workers, status.max_workers} != {entry.workers}:
        least, most = status.min_workers, status.max_workers
        was = f"{least}" if least == most else f"between {least} and {most}"
        return [_change("scale", version, f"workers: {was} to {entry.workers}")]
    if status.ready != entry.workers:  # a `scale` was killed, or a worker died
        return [_change("scale", version, f"workers ready: {status.ready} of {entry.workers}")]
    return []


def _change(kind: Kind, version: Version, detail: str) -> Change:
    return Change(kind, version.name, version.version, detail, version.entry)


def _undeclared(status: ModelStatus, prune: bool, successor: str | None) -> Change:
    detail = "not in the file" if prune else "not in the file; --prune removes it"
    return Change(
        "remove" if prune else "keep",
        status.name,
        status.version,
        detail,
        registration=status.registration,
        successor=successor,
    )


def _default_last(
    there: Mapping[tuple[str, str], ModelStatus],
    defaults: Mapping[str, str],
    declared: set[tuple[str, str]],
) -> list[ModelStatus]:
    """Versions that are not declared; TorchServe removes a default version only as the last."""
    undeclared = [status for key, status in there.items() if key not in declared]
    return sorted(undeclared, key=lambda s: (s.name, defaults[s.name] == s.version, s.version))


def _default_of(name: str, found: Mapping[tuple[str, str], Entry]) -> str:
    """The declared default version of a model.

    Raises:
        UsageError: None of several is marked as default, or two are.
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


@contextmanager
def _named(entry: Entry | None) -> Iterator[None]:
    """Prefix errors with the entry that they are about."""
    try:
        yield
    except MarshipError as error:
        if entry is not None:
            error.args = (f"{entry.where}: {error}",)
        raise
