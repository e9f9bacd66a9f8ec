"""`marship serve --reload`: what is served follows the files that it is packed from.

Each save is packed as a version of its own and rolled over to, so no request is lost. A save that
cannot be packed or loaded changes nothing: its error is told, and the version before it goes on.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from marship import storage
from marship.client import Client
from marship.errors import MarshipError, NotFoundError, UsageError
from marship.operate.rollout import RolloutListener, rollout
from marship.packaging import sources, step
from marship.packaging.settings import PackageSettings
from marship.settings import from_dict

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Reloadable:
    """What is packed anew.

    Attributes:
        source: A run folder, or an ONNX file.
        settings_file: A TOML file with settings of `marship package`; None is the defaults.
    """

    source: Path
    settings_file: Path | None = None

    def check(self) -> None:
        """Check what can be seen before a server is started.

        Raises:
            UsageError: The source does not exist, or the settings are invalid.
        """
        if not self.source.exists():
            raise UsageError(f"{self.source} must be a run folder or an ONNX file, got none there.")
        self.settings()

    def settings(self) -> PackageSettings:
        """The settings as the file has them now.

        Raises:
            UsageError: The file is invalid.
        """
        if self.settings_file is None:
            return PackageSettings()
        values, _ = storage.read_toml(self.settings_file)
        return from_dict(PackageSettings, values, str(self.settings_file))

    def files(self) -> Iterator[Path]:
        """The files that an archive is packed from, as far as they are known."""
        if self.settings_file is not None:
            yield self.settings_file
        settings = PackageSettings()
        with suppress(MarshipError):  # all such errors are told when it is packed
            settings = self.settings()
        with suppress(MarshipError, OSError):
            yield from sources.files(self.source, settings)

    def state(self) -> Mapping[Path, tuple[int, int, int]]:
        """When each file was written, how large it is, and which file it is."""
        found = {}
        for path in self.files():
            with suppress(OSError):  # an editor puts a new file in its place
                about = path.stat()
                found[path] = (about.st_mtime_ns, about.st_size, about.st_ino)
        return found


class ReloadListener:
    """Callbacks for progress; override those that you need."""

    def on_served(self, name: str, version: str) -> None:
        """A version has taken over."""

    def on_error(self, error: MarshipError | OSError) -> None:
        """The last save could not be packed or loaded."""


class _OutdatedError(MarshipError):
    """A load that nobody waits for any more."""


class _LoadWatcher(RolloutListener):
    """Ends a load, which may hang, once it is outdated.

    Args:
        is_outdated: Whether it is.
    """

    def __init__(self, is_outdated: Callable[[], bool]) -> None:
        self._is_outdated = is_outdated

    def on_wait(self, ready: int, wanted: int) -> None:
        """Look, while workers load."""
        if self._is_outdated():
            raise _OutdatedError(
                f"{wanted} workers must have loaded, got {ready} and a newer save."
            )


class Reloading:
    """Follows files in a thread of its own, until it is ended.

    Args:
        home: That of the server.
        what: What is packed.
        listener: Receives progress, in that thread.
    """

    def __init__(self, home: Path, what: Reloadable, listener: ReloadListener) -> None:
        self._home, self._what, self._listener = home, what, listener
        self._ended = threading.Event()
        self._number = 0
        self._archive: Path | None = None
        self._taken: Mapping[Path, tuple[int, int, int]] | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Pack and register what there is, and follow it."""
        self._thread.start()

    def end(self) -> None:
        """Follow no longer; the archive is removed."""
        self._ended.set()
        self._thread.join(10)
        self._replace(None)

    def _follow(self) -> None:
        seen = self._what.state()
        while True:
            if seen != self._taken and self._is_quiet(seen):
                self._taken = seen
                self._take()
            if self._ended.wait(_POLL_S):
                return
            seen = self._what.state()

    def _is_quiet(self, seen: Mapping[Path, tuple[int, int, int]]) -> bool:
        """Whether nothing is being written."""
        return not self._ended.wait(_POLL_S) and self._what.state() == seen

    def _is_outdated(self) -> bool:
        """Whether what was taken is not what is wanted now."""
        return self._ended.is_set() or self._what.state() != self._taken

    def _take(self) -> None:
        """Pack, and roll over."""
        made, watcher = None, _LoadWatcher(self._is_outdated)
        try:
            with Client(self._home) as client:
                made = self._packed(client.model_store)
                try:
                    taken = rollout(client, made.name, watcher=watcher).new
                except NotFoundError:  # the first version
                    taken = client.register(made.name, on_wait=watcher.on_wait)
        except (MarshipError, OSError) as error:
            if made is not None:
                made.unlink(missing_ok=True)
            is_outdated = isinstance(error, _OutdatedError) or isinstance(
                error.__cause__, _OutdatedError
            )
            # else a newer save is taken next, or the server was stopped meanwhile
            if not (is_outdated or self._ended.is_set()):
                self._listener.on_error(error)
            return
        self._replace(made)
        self._listener.on_served(taken.name, taken.version)

    def _packed(self, store: Path) -> Path:
        """An archive in the model store, of a version that was not there before."""
        settings = self._what.settings()
        self._number += 1
        version = f"{settings.version}.{self._number}"
        return step.package(
            self._what.source,
            dataclasses.replace(settings, model_store=store, version=version, versioned=True),
        )

    def _replace(self, made: Path | None) -> None:
        """Remove the archive that was served; workers run what was extracted from it."""
        if self._archive is not None:
            self._archive.unlink(missing_ok=True)
        self._archive = made
