"""A new version takes over from the one that answers, without a lost request, or not at all.

    register    beside the old one; all its workers must be ready
    replay      its golden cases, asked of the endpoint
    probe       a request of one's own, if one is given
    default     from now on it answers
    drain       the old one finishes what it was asked
    unregister  the old one goes

Until the last step everything can be undone, and is as soon as something fails.

Others may change the model at the same time. From the step "default" on rollouts by way of one
home wait for each other; whatever else happens is seen in the server's state: only what this
rollout registered is taken back, and the old version goes only while the new one answers.
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
from marship.predict.sources import media_type
from marship.trust import archive as archives
from marship.trust.archive import Archive

LOAD_TIMEOUT_S = 180.0

T = TypeVar("T")


class Watcher:
    """Told how it goes; what it does not override says nothing."""

    def on_turn(self, said: str) -> None:
        """Another rollout of the model goes on, and is waited for: whose, and how long."""

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
    profile: str | None = None,
    keep_old: bool = False,
    timeout_s: float = LOAD_TIMEOUT_S,
    probe: str | Path | None = None,
    watcher: Watcher | None = None,
) -> RolledOut:
    """Put a new version in place of the one that answers.

    The batch size and the delay that the old version was registered with are kept; where it was
    registered without, they are the new archive's.

    Args:
        client: Of the server.
        archive: A file name in its model store; see `read`.
        name: The model's name on the server; None is the archive's own.
        workers: How many; None is as many as the old version has.
        profile: "latency" or "throughput", in place of what the old version was registered with.
        keep_old: Leave the old version registered.
        timeout_s: How long loading may take, how long another rollout of the model is waited
            for, and how long draining may take.
        probe: A file that the new version must answer.
        watcher: Told how it goes.

    Raises:
        UsageError: The archive or the probe cannot be meant.
        PackageError: The archive is damaged.
        NotFoundError: The model is not registered yet.
        RolloutError: A step failed: the message says which, why, and what the server has now.
    """
    probe = Path(probe) if probe else None
    if probe is not None and not probe.is_file():
        raise UsageError(f"{probe} must be a file for the new version to answer, got none.")
    watcher = watcher or Watcher()
    new = read(client, archive)
    name = name or new.name
    old = _answering(client, name, new)
    settings = _kept(client, old, workers, profile)
    steps = _Steps(client, new, name, old, settings, timeout_s, probe, watcher)
    with ExitStack() as turn:
        try:
            status = steps.prove()
            # not before: loading takes long, or hangs, and changes nothing for anybody
            turn.enter_context(turns(client, [name], timeout_s=timeout_s, watcher=watcher))
            steps.take_over()
            if not keep_old:
                steps.retire_old()
        except BaseException as error:  # Ctrl-C too
            state = steps.undo()
            if not isinstance(error, MarshipError):
                raise
            raise _told(error, steps, state) from error
    return RolledOut(status, steps.old, keep_old)


@contextmanager
def turns(
    client: Client, names: Iterable[str], *, timeout_s: float, watcher: Watcher
) -> Iterator[bool]:
    """Exchange versions of these models while no other rollout by way of the same home does.

    Where the home may only be read, or is elsewhere, there are no locks, and the server's state
    decides alone.

    Yields:
        Whether another one was waited for.

    Raises:
        UsageError: A name cannot be a model's.
        ServerError: Another one goes on for longer than `timeout_s`.
    """
    engine = client.engine
    wanted = sorted({engine.check_name(name) for name in names})  # in one order: no deadlock
    has_waited = False
    with ExitStack() as held:
        for name in wanted:
            waits = engine.turn(name, held, timeout_s=timeout_s, on_wait=watcher.on_turn)
            for pause in waits:
                has_waited = True
                time.sleep(pause.seconds)
        yield has_waited


def read(client: Client, archive: str) -> Archive:
    """An archive of the server's model store; where the server trusts keys, as one signed it.

    Of a server elsewhere it is a copy here: golden cases tell whether the server has the same.

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
    """The way from one version to the other, and back.

    `mine` is what this rollout registered: until then there is nothing of it to take back.
    """

    client: Client
    new: Archive
    name: str
    old: ModelStatus
    settings: Mapping[str, Any]
    timeout_s: float
    probe: Path | None
    watcher: Watcher
    at: str = "register"
    mine: ModelStatus | None = None

    def prove(self) -> ModelStatus:
        """Bring the new version up beside the old one, and hold its responses against its own."""
        status = self._do("register", self._register, lambda s: f"workers ready: {s.ready}")
        self._do("replay", lambda: replay(self.client, self.new, self.name), str)
        if self.probe is not None:
            self._do("probe", self._ask_probe, lambda answer: answer)
        self.at = "default"
        return status

    def take_over(self) -> None:
        """Let the new version answer, in place of what does so by now."""
        (answering,) = self.client.describe(self.name)
        if not self._is_mine(answering):  # else somebody has been faster with this one
            self.old = answering
        was = f"was {self.old.version}"
        self._do("default", self._set_default, lambda _: f"{self.new.version} answers, {was}")

    def retire_old(self) -> None:
        """Let the old version go, when all it was asked is answered."""
        version = self.old.version
        is_there = self._do(
            "drain",
            self._drain_old,
            lambda is_there: (
                f"{version} has answered all it was asked"
                if is_there
                else f"another client has removed {version}"
            ),
        )
        if is_there:
            self._do("unregister", self._remove_old, lambda _: f"{version} is gone")

    def undo(self) -> str:
        """Take back what this rollout did; a sentence that says what the server has."""
        try:
            if self.at == "unregister" and self._answers():  # the old version may have gone
                return self._state()
            self.watcher.on_step("rollback")
            self._take_back()
            said = self._state()
        except MarshipError as error:
            said = f"It could not be undone: {error} Look with: marship models"
        self.watcher.on_done("rollback", said)
        return said

    def _take_back(self) -> None:
        if self.mine is None:
            return
        if self._answers():
            others = [s for s in self._versions() if not self._is_mine(s)]
            others.sort(key=lambda s: (s.version != self.old.version, not s.ready))
            with suppress(NotFoundError):  # it has just gone: `withdraw` finds what is there
                for other in others[:1]:
                    self.client.set_default(self.name, other.version)
                    self.client.drain(self.name, self.new.version, timeout_s=self.timeout_s)
        self.client.withdraw(self.mine, leaves_last=True)

    def _state(self) -> str:
        """What the server has now, of the versions that this rollout is about."""
        found = {status.version: status for status in self._versions()}
        if not found:
            return f"No version of {self.name} is registered."
        answering = self.client.describe(self.name)[0].version
        before = " as before" if answering == self.old.version else ""
        others = [v for v in (self.old.version, self.new.version) if v != answering]
        places = (f", {version} is {self._place(found.get(version))}" for version in others)
        return f"{answering} answers{before}{''.join(places)}."

    def _place(self, status: ModelStatus | None) -> str:
        if status is None:
            return "not registered"
        is_known = self._is_mine(status) or status.registration == self.old.registration
        return "still registered" if is_known else "registered by another client"

    def _answers(self) -> bool:
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

    def _ask_probe(self) -> str:
        probe = self.probe or Path()
        body, kind = probe.read_bytes(), media_type(probe)
        self.client.predict(self.name, body, version=self.new.version, content_type=kind)
        return f"{probe.name} is answered"

    def _set_default(self) -> None:
        (status,) = self.client.describe(self.name, self.new.version)
        if not self._is_mine(status):
            raise RolloutError("another client has put its own version in this one's place")
        self.client.set_default(self.name, self.new.version)

    def _drain_old(self) -> bool:
        """Wait for the old version's requests; whether it is there, and may go.

        Raises:
            RolloutError: The new version does not answer any more: another client has changed
                the default meanwhile.
        """
        version = self.old.version
        with suppress(NotFoundError):  # removed by another client
            self.client.drain(self.name, version, timeout_s=self.timeout_s)
        answering = self.client.describe(self.name)[0]
        if not self._is_mine(answering):
            raise RolloutError(f"another client has made {answering.version} the default")
        old = (self.old.version, self.old.registration)
        return old in {(status.version, status.registration) for status in self._versions()}

    def _remove_old(self) -> None:
        with suppress(NotFoundError):  # another rollout has done so just now
            self.client.unregister(self.name, self.old.version)
        if not self._answers():
            raise RolloutError("another client has made its own version the default")

    def _do(self, step: str, act: Callable[[], T], say: Callable[[T], str]) -> T:
        self.at = step
        self.watcher.on_step(step)
        began = time.monotonic()
        done = act()
        self.watcher.on_done(step, f"{say(done)} ({time.monotonic() - began:.1f} s)")
        return done


def _kept(
    client: Client, old: ModelStatus, workers: int | None, profile: str | None
) -> Mapping[str, Any]:
    """How the new version is registered: as the old one was, but for what is given.

    What the old version has from its archive, the new one has from its own. Where it is not known
    what was asked for, since no note was kept, it is what the old version runs with.
    """
    settings = {"workers": workers or old.min_workers or None, "profile": profile}
    if profile is not None:
        return settings
    note = client.engine.note(old.name, old.version)
    asked = note if note and note.registration == old.registration else old
    batch = {"batch_size": asked.batch_size, "max_batch_delay_ms": asked.max_batch_delay_ms}
    return settings | batch


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
    said = f"got at step {steps.at}: {str(error).rstrip('.')}. {state}"
    told = RolloutError(f"{steps.name} {steps.new.version} must take over, {said}")
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
