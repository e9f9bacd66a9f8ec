"""An archive on a node: fetched, verified and extracted once, for all replicas there."""

import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.engines.ray import archives, keeper
from marship.engines.ray.archives import ArchiveSource, Kept
from marship.errors import MarshipError, PackageError, StorageError
from marship.trust import archive, extract
from marship.trust.contents import ArchiveContents
from marship.trust.policy import Trust
from marship.trust.signature import beside
from marship.version import VERSION

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOCK, _USED = ".lock", ".used"
_SPARE = 4
"""Archives that no process uses and that stay all the same: a version may come back soon."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An extracted archive: its folder, manifest and settings."""

    folder: Path
    manifest: Mapping[str, Any]
    config: dict[str, Any]


def root() -> Path:
    """This user's folder for archives on this node.

    Raises:
        StorageError: It is another user's, or cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"marship-ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.is_symlink():
            raise StorageError(f"{folder} must be a folder of this user, got another's. Remove it.")
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder} must be a folder, got: {error.strerror}.") from error
    return folder


def address() -> str:
    """This node's address."""
    from ray import util

    return str(util.get_node_ip_address())  # type: ignore[no-untyped-call]


def place(
    source: ArchiveSource, kept: Kept = keeper.read, in_use: ExitStack | None = None
) -> Placed:
    """The archive on this node; its signature is verified each time.

    Others are removed that no process uses, but the latest: they would be fetched again.

    Args:
        source: The archive.
        kept: Reads one that lies at no URL, by its digest.
        in_use: Until it closes, or this process ends, the folder stays.

    Raises:
        StorageError: It cannot be read or written.
        PackageError: It is another one, or corrupted.
        SignatureError: It has no valid signature by a trusted key.
    """
    home = root() / source.digest
    with locked(home.with_suffix(_LOCK)):
        home.mkdir(mode=0o700, exist_ok=True)
        os.utime(home)
        if in_use is not None:
            used = in_use.enter_context((home / _USED).open("a"))
            fcntl.flock(used, fcntl.LOCK_SH)
        held = home / "archive.mar"
        if not held.exists() or archives.digest_of(held) != source.digest:
            _fetch(source, held, kept)
        with _named(source, held) as named:
            contents = _verified(source, named)
            read = archive.read_settings(named)
            folder = home / "model"
            if others := _others(contents, folder):
                _extract(named, contents, folder, others)
    _sweep(home)
    return Placed(folder, read[0].manifest, read[1])


def _sweep(latest: Path) -> None:
    """Remove archives that no process of this node uses, but some."""
    places = [path for path in latest.parent.iterdir() if _DIGEST.fullmatch(path.name)]
    unused = 0
    for home in sorted(places, key=_changed, reverse=True):
        if home == latest:
            continue
        with suppress(OSError), ExitStack() as held:  # in use, or gone just now
            # in this order: whoever places one has the first lock, then takes the other
            for lock in (home.with_suffix(_LOCK), home / _USED):
                file = held.enter_context(lock.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unused += 1
            if unused > _SPARE:
                shutil.rmtree(home, ignore_errors=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it just now
        return 0.0


def probe(source: ArchiveSource | None) -> dict[str, str]:
    """What this node has; with an archive, whether it can be placed here. Runs as a task."""
    return tried(lambda: source and place(source))


def tried(work: Callable[[], object]) -> dict[str, str]:
    """What this node has, after some work; an error of ours is a result: `code` and `message`."""
    import ray

    facts = {"marship": VERSION, "ray": ray.__version__, "python": platform.python_version()}
    try:
        work()
    except MarshipError as error:
        told = str(error) if address() in str(error) else f"node {address()}: {error}"
        facts |= {"code": error.code, "message": told}
    return facts


def _fetch(source: ArchiveSource, target: Path, kept: Kept) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as draft:
        try:
            archives.download(source, draft, kept, address())
            Path(draft.name).replace(target)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _verified(source: ArchiveSource, named: Path) -> ArchiveContents:
    if not source.keys:
        return archive.read(named).plain
    with tempfile.TemporaryDirectory(dir=named.parent) as folder:
        for name, data in source.keys.items():
            (Path(folder) / name).write_bytes(data)
        return Trust.load(folder).verify(named).contents


def _others(contents: ArchiveContents, folder: Path) -> list[str]:
    """Files that are not as in the archive: a disk was full, or a cleaner takes what is old."""
    found = []
    for name, file in contents.files.items():
        place = folder / name
        is_here = place.is_file() and place.stat().st_size == file.size_bytes
        if not is_here or archives.digest_of(place) != file.sha256:
            found.append(name)
    return found


def _extract(named: Path, contents: ArchiveContents, folder: Path, others: list[str]) -> None:
    """Put files in place one by one: workers may run there."""
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        extract.unpack(named, contents, draft)
        for name in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).replace(folder / name)
    except OSError as error:
        raise StorageError(
            f"node {address()} must hold the extracted archive in {folder.parent}, got: "
            f"{error.strerror or error}."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _named(source: ArchiveSource, held: Path) -> Iterator[Path]:
    """The archive under the name that was signed, beside its signature."""
    with tempfile.TemporaryDirectory(dir=held.parent) as folder:
        named = Path(folder) / source.file
        if named.parent != Path(folder):
            raise PackageError(f"an archive must have the name of a file, got {source.file!r}.")
        named.hardlink_to(held)
        if source.signature is not None:
            beside(named).write_bytes(source.signature)
        yield named


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock of this node, and hold it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
