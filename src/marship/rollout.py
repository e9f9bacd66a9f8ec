"""A new version takes over from the one that answers, without a lost request, or not at all.

    register    beside the old one; all its workers must be ready
    replay      its golden cases, asked of the endpoint
    probe       a request of one's own, if one is given
    default     from now on it answers
    drain       the old one finishes what it was asked
    unregister  the old one goes

Until the last step everything can be undone, and is as soon as something fails.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from marship import archive as archives
from marship.archive import Archive
from marship.client import Client, ModelStatus
from marship.errors import MarshipError, NotFoundError, PackageError, RolloutError, UsageError
from marship.predict.sources import media_type
from marship.replay import replay
from marship.torchserve import store

LOAD_TIMEOUT_S = 180.0

T = TypeVar("T")


class Watcher:
    """Told how it goes; what it does not override says nothing."""

    def on_step(self, step: str) -> None:
        """A step begins."""

    def on_wait(self, ready: int, wanted: int) -> None:
        """So many workers are ready."""

    def on_done(self, step: str, said: str) -> None:
        """A step is done."""


@dataclass(frozen=True, slots=True)
class RolledOut:
    """What the server has now.

    Attributes:
        new: The version that answers.
        old: The version before it.
        is_old_kept: Whether that is still registered.
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
    keep_old: bool = False,
    timeout_s: float = LOAD_TIMEOUT_S,
    probe: Path | None = None,
    watcher: Watcher | None = None,
) -> RolledOut:
    """Put a new version in place of the one that answers.

    Args:
        client: Of a server whose home is at hand.
        archive: A file name in its model store.
        name: The model's name on the server; None is the archive's own.
        workers: How many; None is as many as the old version has.
        keep_old: Leave the old version registered.
        timeout_s: How long loading may take, and as long again draining.
        probe: A file that the new version must answer.
        watcher: Told how it goes.

    Raises:
        UsageError: The archive or the probe cannot be meant.
        PackageError: The archive is damaged.
        NotFoundError: The model is not registered yet.
        RolloutError: A step failed: the message says which, why, and what the server has now.
    """
    if probe is not None and not probe.is_file():
        raise UsageError(f"{probe} must be a file for the new version to answer, got none.")
    new = read(client, archive)
    name = name or new.name
    old = _answering(client, name, new)
    workers = workers or old.min_workers or None
    steps = _Steps(client, new, name, old, workers, timeout_s, probe, watcher or Watcher())
    try:
        status = steps.take_over()
        if not keep_old:
            steps.retire_old()
    except BaseException as error:  # Ctrl-C too
        state = steps.undo()
        if not isinstance(error, MarshipError):
            raise
        raise _told(error, steps, state) from error
    return RolledOut(status, old, keep_old)


def read(client: Client, archive: str) -> Archive:
    """An archive of the server's model store; where the server trusts keys, as one signed it.

    Raises:
        UsageError: It is no file name, or no such file.
        PackageError: It is damaged.
        SignatureError: None of the keys signed it as it is.
    """
    if Path(archive).name != archive:
        raise UsageError(
            f"an archive must be the name of a file in the model store, got {archive!r}. "
            "Put the file there and give its name alone."
        )
    record = client.home.require_running()
    path = Path(record.model_store) / archive
    keys = store.pinned(Path(record.trust) if record.trust else None)
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
    """The way from one version to the other, and back."""

    client: Client
    new: Archive
    name: str
    old: ModelStatus
    workers: int | None
    timeout_s: float
    probe: Path | None
    watcher: Watcher
    at: str = "register"

    def take_over(self) -> ModelStatus:
        """Everything up to the new version's answering."""
        status = self._do("register", self._register, lambda s: f"workers ready: {s.ready}")
        self._do("replay", lambda: replay(self.client, self.new, self.name), str)
        if self.probe is not None:
            self._do("probe", self._ask_probe, lambda answer: answer)
        was = f"was {self.old.version}"
        self._do("default", self._set_default, lambda _: f"{self.new.version} answers, {was}")
        return status

    def retire_old(self) -> None:
        """Let the old version go, when all it was asked is answered."""
        version = self.old.version
        self._do(
            "drain",
            lambda: self.client.drain(self.name, version, timeout_s=self.timeout_s),
            lambda _: f"{version} has answered all it was asked",
        )
        self._do(
            "unregister",
            lambda: self.client.unregister(self.name, version),
            lambda _: f"{version} is gone",
        )

    def undo(self) -> str:
        """Bring back what was there; a sentence that says what there is."""
        old, new = self.old.version, self.new.version
        if self.at == "unregister":
            return f"{new} answers; {old} may still be registered. Look with: marship models"
        self.watcher.on_step("rollback")
        said = f"{old} answers as before, {new} is not registered."
        try:
            self._take_back()
        except MarshipError as error:
            said = f"It could not be undone: {error} Look with: marship models"
        self.watcher.on_done("rollback", said)
        return said

    def _take_back(self) -> None:
        (default,) = self.client.describe(self.name)
        if default.version == self.new.version:
            self.client.set_default(self.name, self.old.version)
            self.client.drain(self.name, self.new.version, timeout_s=self.timeout_s)
        versions = {status.version for status in self.client.describe(self.name, "all")}
        if self.new.version in versions:
            self.client.unregister(self.name, self.new.version)

    def _register(self) -> ModelStatus:
        return self.client.register(
            self.new.path.name,
            name=self.name,
            workers=self.workers,
            timeout_s=self.timeout_s,
            on_wait=self.watcher.on_wait,
        )

    def _ask_probe(self) -> str:
        probe = self.probe or Path()
        body, kind = probe.read_bytes(), media_type(probe)
        self.client.predict(self.name, body, version=self.new.version, content_type=kind)
        return f"{probe.name} is answered"

    def _set_default(self) -> None:
        self.client.set_default(self.name, self.new.version)

    def _do(self, step: str, act: Callable[[], T], say: Callable[[T], str]) -> T:
        self.at = step
        self.watcher.on_step(step)
        began = time.monotonic()
        done = act()
        self.watcher.on_done(step, f"{say(done)} ({time.monotonic() - began:.1f} s)")
        return done


def _answering(client: Client, name: str, new: Archive) -> ModelStatus:
    """The version that answers now.

    Raises:
        NotFoundError: There is none.
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


def _told(error: MarshipError, steps: _Steps, state: str) -> RolloutError:
    said = str(error).rstrip(".")
    told = RolloutError(
        f"{steps.name} {steps.new.version} must take over, got at step {steps.at}: {said}. {state}"
    )
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
