"""The models that a server shall have, as a TOML file: what is missing, and how to get there.

    [[model]]
    archive = "recommend-2.mar"   # a file in the model store; it knows its name and version
    workers = 2                   # else as the archive says
    profile = "throughput"        # else as the archive says
    name = "recommend"            # else the archive's own
    default = true                # which of several versions answers

Each entry is one version of a model. What runs and is not in the file stays, unless it is pruned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from marship import profiles
from marship.client.clients import Client, Model, ModelStatus
from marship.errors import MarshipError, ServerError, UsageError
from marship.operate import rollout as rollouts
from marship.operate.replay import replay
from marship.operate.statefile import Entry

Kind = Literal["register", "scale", "default", "keep", "remove"]


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
        registration: Of a version that is to go: which one it was when that was planned.
        successor: Of a version that is to go: the one that must answer then, if any is declared.
    """

    kind: Kind
    name: str
    version: str
    detail: str = ""
    entry: Entry | None = None
    registration: str = ""
    successor: str | None = None


def plan(client: Client, entries: Sequence[Entry], *, prune: bool = False) -> list[Change]:
    """What is to be done on a server, in order.

    Args:
        client: Of the server.
        entries: What shall be.
        prune: Remove what is not among them.

    Raises:
        UsageError: An entry cannot be meant, or a version must be registered anew for it.
        PackageError: An archive is damaged.
    """
    return compare(resolve(client, entries), client.models(), prune=prune)


@contextmanager
def planned(
    client: Client,
    entries: Sequence[Entry],
    *,
    prune: bool = False,
    watcher: rollouts.Watcher | None = None,
    timeout_s: float = rollouts.LOAD_TIMEOUT_S,
) -> Iterator[list[Change]]:
    """What is to be done, while no rollout and no other plan of this home changes these models.

    Raises:
        ServerError: One goes on for longer than `timeout_s`.
        MarshipError: As `plan` raises.
    """
    watcher = watcher or rollouts.Watcher()
    wanted = resolve(client, entries)
    names = {version.name for version in wanted}
    if prune:
        names |= {model.name for model in client.models()}
    with rollouts.turns(client, names, timeout_s=timeout_s, watcher=watcher) as has_waited:
        if has_waited:
            wanted = resolve(client, entries)
        yield compare(wanted, client.models(), prune=prune)


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
            is_changed=client.engine.has_other_files(name, version, entry.archive),
        )
        for (name, version), entry in found.items()
    ]


def compare(
    wanted: Sequence[Version], models: Sequence[Model], *, prune: bool = False
) -> list[Change]:
    """Changes that bring the server to the declared state.

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
    answering = {version.name: version.version for version in wanted if version.is_default}
    undeclared = _answering_last(there, defaults, declared)
    return changes + [_undeclared(s, prune, answering.get(s.name)) for s in undeclared]


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
            self.client.withdraw(status, leaves_last=True)
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
        """Unregister a version; where another answers, not before it has finished its work.

        Raises:
            ServerError: The server's models are others by now than when this was planned.
        """
        if self._answering(change) != change.version:
            self.client.drain(change.name, change.version, timeout_s=self.timeout_s)
        answering = self._answering(change)
        (status,) = self.client.describe(change.name, change.version)
        is_as_planned = change.successor in (None, answering)
        if not is_as_planned or status.registration != change.registration:
            raise ServerError(
                f"{change.name} must be as it was when {change.version} was planned to go, got "
                f"it changed by another client: {answering} answers. Run apply again."
            )
        self.client.unregister(change.name, change.version)
        return "is gone"

    def _answering(self, change: Change) -> str:
        return self.client.describe(change.name)[0].version


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


@contextmanager
def _named(entry: Entry | None) -> Iterator[None]:
    """Let an error say for which entry it is."""
    try:
        yield
    except MarshipError as error:
        if entry is not None:
            error.args = (f"{entry.where}: {error}",)
        raise
