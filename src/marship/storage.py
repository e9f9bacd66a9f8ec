"""Files that are written atomically, and read with clear errors."""

import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from marship import texts
from marship.errors import DataError, StorageError, UsageError


class MissingError(UsageError):
    """The file does not exist."""


_ADVICE = {
    errno.EACCES: "Run as its owner, or name another.",
    errno.EPERM: "Run as its owner, or name another.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EEXIST: "A file stands where a folder must: name another.",
    errno.ENOTDIR: "A file stands where a folder must: name another.",
    errno.EISDIR: "Name a file.",
    errno.ELOOP: "Its links lead in a circle: name another.",
}


def as_usage(error: OSError, path: object = None) -> UsageError | None:
    """The error of a path given by the user as a usage error; None for any other OSError."""
    if error.errno not in _ADVICE:
        return None
    named = error.filename if path is None else path
    rule = f"{named or 'a path'} must be a path that this user can use"
    return UsageError(f"{rule}, got: {error.strerror}. {_ADVICE[error.errno]}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces `path` atomically.

    The file is synced before the rename, so a power failure leaves the old file or the new one.
    On any error the old file stays and the draft is removed; that of a killed process is removed
    by the next one that writes the same file.

    Raises:
        StorageError: The disk is full or the folder cannot be written to.
    """
    # a folder, so that writers which add files of their own beside the named one leave none
    with explained(path), _draft_folder(path.parent, path.name) as folder:
        draft = folder / path.name
        yield draft
        _sync(draft)
        draft.replace(path)


@contextmanager
def replacing_all(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to; on success its files replace those in `folder`.

    Files of its folders replace those of the same folders, and all others there stay. They are
    renamed one by one, sorted by name, after all are synced. On any error before that none is
    renamed, and the old files stay.

    Raises:
        StorageError: The disk is full, the folder cannot be written to, or a target is a
            folder.
    """
    with explained(folder), _draft_folder(folder, "draft") as drafts:
        yield drafts
        files = {
            file: folder / file.relative_to(drafts)
            for file in sorted(drafts.rglob("*"))
            if not file.is_dir()
        }
        for file, target in files.items():
            _sync(file)
            if target.is_dir():
                raise _a_folder(target)
        for target in files.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        for file, target in files.items():
            file.replace(target)


@contextmanager
def replacing_entries(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to; on success its files and folders replace those in `folder`.

    On any error before that the old ones stay.

    Raises:
        StorageError: The disk is full or the folder cannot be written to.
    """
    with explained(folder), _draft_folder(folder, "draft") as drafts:
        yield drafts
        for entry in sorted(drafts.iterdir()):
            remove(folder / entry.name)
            entry.replace(folder / entry.name)


@contextmanager
def temporary(name: str) -> Iterator[Path]:
    """Yield a folder for temporary files, which is removed when the block ends.

    That of a killed process is removed by the next one that asks for a folder of this name.

    Args:
        name: What the folder is for, such as "marship-tune".
    """
    with _draft_folder(Path(tempfile.gettempdir()), name) as folder:
        yield folder


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_draft(name: str) -> bool:
    """Whether a name is that of a draft, which a killed process may have left."""
    return name.startswith(".") and ".draft-" in name


@contextmanager
def _draft_folder(folder: Path, name: str) -> Iterator[Path]:
    """A locked folder within `folder`, which is made; on an error what was made is removed."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        _remove_abandoned(folder, name)
        drafts, lock = _held(folder, name)
        try:
            with drafts as draft:
                yield Path(draft)
        finally:
            os.close(lock)
    except BaseException:
        with suppress(OSError):  # the first that another process fills ends it
            for place in made:
                place.rmdir()
        raise


def _held(folder: Path, name: str) -> tuple[tempfile.TemporaryDirectory[str], int]:
    """A new draft, and a lock of it that ends with this process."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            draft = tempfile.TemporaryDirectory(dir=folder, prefix=_prefix(name))
            lock = os.open(draft.name, os.O_RDONLY)
        except FileNotFoundError:
            if folder.is_dir():  # as /proc is, where nothing can be made
                raise
            continue  # another run that failed removed it again
        if _is_locked(lock) is not False and Path(draft.name).exists():
            return draft, lock
        os.close(lock)
        draft.cleanup()  # another run took it for abandoned before it was locked


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove drafts whose process was killed: nobody holds their lock."""
    for path in folder.glob(f"{glob.escape(_prefix(name))}*"):
        with suppress(OSError):  # another user's, or just removed
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _is_locked(lock):
                    shutil.rmtree(path)
            finally:
                os.close(lock)


def _prefix(name: str) -> str:
    """What names of drafts begin with, which are locked by whoever writes them."""
    return f".{name}.draft-"


def _is_locked(fd: int) -> bool | None:
    """Lock a file; whether that could be done, or None where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise the OSErrors of writing `path` as errors with advice.

    Raises:
        StorageError: The disk is full or the folder cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path} must fit on the disk, got: no space left. Free some and run again."
            ) from error
        # a file system such as /proc says ENOENT where nothing can be made; the name is a draft's
        is_beside = error.filename is not None and Path(error.filename).parent in (
            path,
            path.parent,
        )
        is_refused = error.errno == errno.ENOENT and is_beside
        if is_refused or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{path} must be writable, got: {error.strerror}. Choose another folder."
            ) from error
        if error.errno == errno.EISDIR:
            raise _a_folder(path) from error
        is_in_place = error.errno in (errno.EEXIST, errno.ENOTDIR)  # of the folder
        if is_in_place and (unusable := as_usage(error)) is not None:
            raise unusable from error
        raise


def _a_folder(path: Path) -> StorageError:
    return StorageError(f"{path} must be a file, got a folder. Move it away.")


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write `value` to `path`, indented, atomically."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON file.

    Raises:
        MissingError: The file does not exist.
        UsageError: It cannot be opened: its permissions or its name.
        DataError: It is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(f"{path} must exist, got no such file.") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and (unusable := as_usage(error, path)):
            raise unusable from error
        raise DataError(f"{path} must be readable JSON, got: {error}.") from error


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The values of a TOML file, and its text.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with texts.open_file(path) as file:
            data = file.read(texts.MOST_TOML_BYTES + 1)
        return texts.toml_value(data), data.decode()
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UsageError(f"{path} must be a readable TOML file, got: {reason}.")
