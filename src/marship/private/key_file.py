"""A client's keys in a file of mode 0600: the secret key, and the evaluation keys made with it.

Evaluation keys are random: made anew they would be others, and be uploaded again. FILE.failures
beside it has a byte for each answer that failed under them: a new process goes on counting.
"""

import io
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from marship import unversioned
from marship.contract import NPZ_FAULTS
from marship.errors import UsageError
from marship.storage import explained, replacing

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MOST_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """A client's keys for one plan.

    Attributes:
        plan: The plan's digest, in hexadecimal.
        secret: The secret key, as `SecretKey.dump` gives it.
        evaluation: The stream of evaluation keys.
    """

    plan: str
    secret: bytes = field(repr=False)
    evaluation: bytes = field(repr=False)


def write(path: Path, keys: ClientKeys) -> None:
    """Write a key file, which git ignores; one that is there is replaced.

    Raises:
        StorageError: The folder cannot be written to.
        UsageError: Git would track the file.
    """
    with explained(path):
        unversioned.make_folder(path.parent)
        unversioned.ignore(path)
        _failures(path).unlink(missing_ok=True)  # of keys that somebody removed
    with replacing(path) as draft, os.fdopen(_created(draft), "wb") as file:
        np.savez(
            file,
            plan=np.frombuffer(bytes.fromhex(keys.plan), np.uint8),
            secret=np.frombuffer(keys.secret, np.uint8),
            evaluation=np.frombuffer(keys.evaluation, np.uint8),
        )


def read(path: Path, plan: str) -> ClientKeys | None:
    """Read a key file; None where there is none.

    Args:
        path: The file.
        plan: The digest of the plan that the keys must be for.

    Raises:
        UsageError: Others can read it, it is damaged, or for another plan.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & _OTHERS:
                raise UsageError(
                    f"{path} must be a file for its owner only, got mode {stat.S_IMODE(mode):o}. "
                    f"Run: chmod 600 {path}, and make new keys if others may have read it."
                )
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} must be a readable key file, got: {error.strerror}.") from error
    found = _parsed(path, data)
    if found.plan != plan:
        raise UsageError(
            f"{path} must hold keys for plan {plan[:16]}, got keys for {found.plan[:16]}. Name "
            "another file: each model and version has keys of its own."
        )
    return found


def stamp(path: Path) -> object:
    """What is another for each file that `write` made under the path; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def count_failure(path: Path) -> int:
    """Note that an answer failed under the keys of a file; how often that happened to them.

    A byte is appended for each: that is whole, whichever processes do it at once.

    Raises:
        StorageError: The folder cannot be written to.
    """
    beside = _failures(path)
    with explained(beside):
        descriptor = os.open(beside, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_size


def remove(path: Path) -> None:
    """Remove a key file, and what was counted for it."""
    path.unlink(missing_ok=True)
    _failures(path).unlink(missing_ok=True)


def _failures(path: Path) -> Path:
    return path.with_name(f"{path.name}.failures")


def _parsed(path: Path, data: bytes) -> ClientKeys:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            parts = {name: arrays[name].tobytes() for name in ("plan", "secret", "evaluation")}
    except NPZ_FAULTS as error:
        raise UsageError(
            f"{path} must be a key file of marship's, got another. Name another, or remove it: "
            "new keys are made then."
        ) from error
    return ClientKeys(parts["plan"].hex(), parts["secret"], parts["evaluation"])


def _created(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
