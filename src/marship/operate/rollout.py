"""Rolls a model over to a new version without losing a request, or rolls back.

    register    the new version beside the old one; all its workers must be ready
    replay      its golden cases against the endpoint
    probe       a request from a file, if one is given
    default     the new version becomes the default
    drain       the old version finishes its requests
    unregister  the old version is removed

Until the last step everything can be undone, and is on any failure.

Other clients may change the model concurrently. From the step "default" on, rollouts through one
home exclude each other by a lock; other changes are detected in the server's state: only what this
rollout registered is undone, and the old version is only removed while the new one is the default.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from marship.client import Client
from marship.client.clients import ModelStatus
from marship.errors import MarshipError, NotFoundError, PackageError, RolloutError, UsageError
from marship.operate.replay import replay
from marship.serving.formats.media import media_type
from marship.trust import archive as archives
from marship.trust.archive import Archive

LOAD_TIMEOUT_S = 180.0

T = TypeVar("T")


class RolloutListener:
    """Callbacks for progress; override those that you need."""

    def on_lock_wait(self, details: str) -> None:
        """Another rollout of the model is running and is waited for: by whom, and how long."""

    def on_step(self, step: str) -> None:
        """A step starts."""

    def on_wait(self, ready: int, wanted: int) -> None:
        """The number of workers that are ready has changed."""

    def on_done(self, step: str, details: str) -> None:
        """A step is done."""


@dataclass(frozen=True, slots=True)
class RolledOut:
    """The result of a rollout.

    Attributes:
        new: The new default version.
        old: The previous default version.
        is_old_kept: Whether the previous version is still registered.
    """

    new: ModelStatus
    old: ModelStatus
    is_old_kept: bool


def rollout(  # noqa: PLR0913  keyword-only
    client: Client,
    archive: str,
    *,
    name: str | None = None,
    workers: int | None = None,
    profile: str | None = None,
    keep_old: bool = False,
    timeout_s: float = LOAD_TIMEOUT_S,
    probe: str | Path | None = None,
    watcher: RolloutListener | None = None,
) -> RolledOut:
    """Replace the default version of a model by a new version.

    The batch size and delay that the old version was registered with are kept; if it was
    registered without them, they are the new archive's.

    Args:
        client: The server's client.
        archive: A file name in its model store; see `read`.
        name: The model's name on the server; None is the archive's own.
        workers: Number of workers; None is that of the old version, or bounds of the new archive.
        profile: "latency" or "throughput"; overrides the old version's batch settings.
        keep_old: Leave the old version registered.
        timeout_s: Timeout for loading, for waiting for another rollout of the model, and for
            draining.
        probe: A file with a request that the new version must handle without error.
        watcher: Receives progress.

    Raises:
        UsageError: The archive or the probe is invalid.
        PackageError: The archive is corrupted.
        NotFoundError: The model is not registered yet.
        RolloutError: A step failed: the message says which, why, and what the server has now.
    """
    probe = Path(probe) if probe else None
    if probe is not None and not probe.is_file():
        raise UsageError(f"{probe} must be a file with a request for the new version, got none.")
    watcher = watcher or RolloutListener()
    new = read(client, archive)
    name = name or new.name
    old = _default_version(client, name, new)
    settings = _kept(client, old, workers, profile)
    steps = _Steps(client, new, name, old, settings, timeout_s, probe, watcher)
    with ExitStack() as held:
        try:
            status = steps.prove()
            # not earlier: loading may take long or hang, and does not affect others
            held.enter_context(version_locks(client, [name], timeout_s=timeout_s, watcher=watcher))
            steps.take_over()
            if not keep_old:
                steps.retire_old()
        except BaseException as error:  # Ctrl-C too
            state = steps.undo()
            if not isinstance(error, MarshipError):
                raise
            raise _as_rollout_error(error, steps, state) from error
    return RolledOut(status, steps.old, keep_old)


@contextmanager
def version_locks(
    client: Client, names: Iterable[str], *, timeout_s: float, watcher: RolloutListener
) -> Iterator[bool]:
    """Hold the locks for exchanging versions of these models through this home.

    If the home is read-only or remote there are no locks, and only the server's state is checked.

    Yields:
        Whether another rollout was waited for.

    Raises:
        UsageError: A model name is invalid.
        ServerError: Another rollout takes longer than `timeout_s`.
    """
    engine = client.engine
    wanted = sorted({engine.check_name(name) for name in names})  # in one order, against deadlocks
    has_waited = False
    with ExitStack() as held:
        for name in wanted:
            waits = engine.version_lock(
                name, held, timeout_s=timeout_s, on_wait=watcher.on_lock_wait
            )
            for pause in waits:
                has_waited = True
                time.sleep(pause.seconds)
        yield has_waited


def read(client: Client, archive: str) -> Archive:
    """Read an archive of the server's model store, and verify it if the server has trusted keys.

    For a remote server it is a local copy: golden cases show whether the server's is the same.

    Raises:
        UsageError: It is not a file name, or the file does not exist.
        PackageError: It is corrupted.
        SignatureError: It has no valid signature by a trusted key.
    """
    if Path(archive).name != archive:
        raise UsageError(
            f"an archive must be the name of a file in the model store, got {archive!r}. "
            "Put the file there and give its name alone."
        )
    path = client.model_store / archive
    keys = client.engine.keys()
    if keys is None:
        return archives.read(path)
    signed = keys.verify(path).contents.files  # before anything in it is parsed
    found = archives.read(path)
    files = {file.name: file.sha256 for file in found.members if not file.name.endswith("/")}
    if files != {name: file.sha256 for name, file in signed.items()}:
        raise PackageError(f"{path} must stay as it is while it is read, got another. Try again.")
    return found


@dataclass(slots=True)
class _Steps:
    """The steps of a rollout, and undoing them.

    `mine` is the version that this rollout registered; None before that.
    """

    client: Client
    new: Archive
    name: str
    old: ModelStatus
    settings: Mapping[str, Any]
    timeout_s: float
    probe: Path | None
    watcher: RolloutListener
    at: str = "register"
    mine: ModelStatus | None = None

    def prove(self) -> ModelStatus:
        """Register the new version beside the old one, and check it by its golden cases."""
        status = self._do("register", self._register, lambda s: f"workers ready: {s.ready}")
        self._do("replay", lambda: replay(self.client, self.new, self.name), str)
        if self.probe is not None:
            self._do("probe", self._send_probe, lambda response: response)
        self.at = "default"
        return status

    def take_over(self) -> None:
        """Make the new version the default, in place of the current one."""
        (default,) = self.client.describe(self.name)
        if not self._is_mine(default):  # otherwise another client has made it the default already
            self.old = default
        was = f"was {self.old.version}"
        self._do(
            "default", self._set_default, lambda _: f"{self.new.version} is the default, {was}"
        )

    def retire_old(self) -> None:
        """Drain and unregister the old version."""
        version = self.old.version
        is_there = self._do(
            "drain",
            self._drain_old,
            lambda is_there: (
                f"{version} has finished its requests"
                if is_there
                else f"another client has removed {version}"
            ),
        )
        if is_there:
            self._do("unregister", self._remove_old, lambda _: f"{version} is unregistered")

    def undo(self) -> str:
        """Undo this rollout; returns a sentence about the server's state."""
        try:
            if (
                self.at == "unregister" and self._is_default()
            ):  # the old version may be removed already
                return self._state()
            self.watcher.on_step("rollback")
            self._take_back()
            details = self._state()
        except MarshipError as error:
            details = f"It could not be undone: {error} Look with: marship models"
        self.watcher.on_done("rollback", details)
        return details

    def _take_back(self) -> None:
        if self.mine is None:
            return
        if self._is_default():
            others = [s for s in self._versions() if not self._is_mine(s)]
            others.sort(key=lambda s: (s.version != self.old.version, not s.ready))
            with suppress(NotFoundError):  # it was just removed: `withdraw` checks what exists
                for other in others[:1]:
                    self.client.set_default(self.name, other.version)
                    self.client.drain(self.name, self.new.version, timeout_s=self.timeout_s)
        self.client.withdraw(self.mine, leaves_last=True)

    def _state(self) -> str:
        """The server's state regarding the versions of this rollout, as a sentence."""
        found = {status.version: status for status in self._versions()}
        if not found:
            return f"No version of {self.name} is registered."
        default = self.client.describe(self.name)[0].version
        before = " as before" if default == self.old.version else ""
        others = [v for v in (self.old.version, self.new.version) if v != default]
        places = (f", {version} is {self._place(found.get(version))}" for version in others)
        return f"{default} is the default{before}{''.join(places)}."

    def _place(self, status: ModelStatus | None) -> str:
        if status is None:
            return "not registered"
        is_known = self._is_mine(status) or status.registration == self.old.registration
        return "still registered" if is_known else "registered by another client"

    def _is_default(self) -> bool:
        return self._is_mine(self.client.describe(self.name)[0])

    def _is_mine(self, status: ModelStatus) -> bool:
        return self.mine is not None and status.registration == self.mine.registration

    def _versions(self) -> list[ModelStatus]:
        try:
            return self.client.describe(self.name, "all")
        except NotFoundError:
            return []

    def _register(self) -> ModelStatus:
        self.mine = self.client.register(
            self.new.path.name,
            name=self.name,
            timeout_s=self.timeout_s,
            on_wait=self.watcher.on_wait,
            **self.settings,
        )
        if self.mine.version != self.new.version:
            raise RolloutError(f"the server's archive is another one, of {self.mine.version}")
        return self.mine

    def _send_probe(self) -> str:
        probe = self.probe or Path()
        body, kind = probe.read_bytes(), media_type(probe)
        self.client.predict(self.name, body, version=self.new.version, content_type=kind)
        return f"{probe.name} got a response"

    def _set_default(self) -> None:
        (status,) = self.client.describe(self.name, self.new.version)
        if not self._is_mine(status):
            raise RolloutError("another client has put its own version in this one's place")
        self.client.set_default(self.name, self.new.version)

    def _drain_old(self) -> bool:
        """Drain the old version; returns whether it exists and may be removed.

        Raises:
            RolloutError: Another client has changed the default meanwhile.
        """
        version = self.old.version
        with suppress(NotFoundError):  # removed by another client
            self.client.drain(self.name, version, timeout_s=self.timeout_s)
        default = self.client.describe(self.name)[0]
        if not self._is_mine(default):
            raise RolloutError(f"another client has made {default.version} the default")
        old = (self.old.version, self.old.registration)
        return old in {(status.version, status.registration) for status in self._versions()}

    def _remove_old(self) -> None:
        with suppress(NotFoundError):  # another rollout has just done so
            self.client.unregister(self.name, self.old.version)
        if not self._is_default():
            raise RolloutError("another client has made its own version the default")

    def _do(self, step: str, operation: Callable[[], T], describe: Callable[[T], str]) -> T:
        self.at = step
        self.watcher.on_step(step)
        started_at = time.monotonic()
        done = operation()
        self.watcher.on_done(step, f"{describe(done)} ({time.monotonic() - started_at:.1f} s)")
        return done


def _kept(
    client: Client, old: ModelStatus, workers: int | None, profile: str | None
) -> Mapping[str, Any]:
    """Settings for registering the new version: those of the old one, unless overridden.

    Settings that the old version had from its archive come from the new archive. Without a record
    of the old registration, the old version's current settings are used.
    """
    is_number = old.min_workers == old.max_workers  # else bounds, which a number would replace
    kept = old.min_workers if is_number else None
    settings = {"workers": workers or kept or None, "profile": profile}
    if profile is not None:
        return settings
    note = client.engine.note(old.name, old.version)
    registered_with = note if note and note.registration == old.registration else old
    batch = {
        "batch_size": registered_with.batch_size,
        "max_batch_delay_ms": registered_with.max_batch_delay_ms,
    }
    return settings | batch


def _default_version(client: Client, name: str, new: Archive) -> ModelStatus:
    """The current default version.

    Raises:
        NotFoundError: The model is not registered.
        UsageError: The new version is registered already.
    """
    try:
        (old,) = client.describe(name)
        versions = {status.version for status in client.describe(name, "all")}
    except NotFoundError as error:
        raise NotFoundError(
            f"{name} must be registered to be rolled over, got no such model. "
            f"Register it with: marship register {new.path.name}"
        ) from error
    if new.version in versions:
        raise UsageError(
            f"{new.path.name} must hold a version that is not registered, got {name} "
            f"{new.version}. Package it with another --version, or unregister that one."
        )
    return old


def _as_rollout_error(error: MarshipError, steps: _Steps, state: str) -> RolloutError:
    details = f"got at step {steps.at}: {str(error).rstrip('.')}. {state}"
    wrapped = RolloutError(f"{steps.name} {steps.new.version} must take over, {details}")
    for note in getattr(error, "__notes__", ()):
        wrapped.add_note(note)
    return wrapped
