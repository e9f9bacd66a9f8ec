"""Sources of an operator's key: a file, an environment variable, or a command's output.

A source is `file:PATH`, `env:NAME` or `command:PROGRAM ARGUMENTS`. Each gives 64 hexadecimal
digits, a key of 256 bits, as `openssl rand -hex 32` prints. Only the source is passed on and
stored, never the key.
"""

import ctypes
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

from marship.errors import SealError, UsageError

SOURCE_VARIABLE = "MARSHIP_SEAL_KEY"
"""The environment variable with the source, for workers."""
KEY_BYTES = 32
_COMMAND_TIMEOUT_S = 60
_FORMS = ("file", "env", "command")


def read(source: str) -> bytes:
    """Read the key of a source.

    Raises:
        UsageError: The source is written otherwise.
        SealError: The key is missing, its file is readable by others, or it is not a key.
    """
    form, rest = _split(source)
    text = {"file": _from_file, "env": _from_environment, "command": _from_command}[form](rest)
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SealError(  # and not a word of what was there
            f"the key from {form}:{rest} must be {2 * KEY_BYTES} hexadecimal digits, got something "
            f"else of {len(text.strip())} characters. Make one with: openssl rand -hex {KEY_BYTES}"
        ) from None
    return key


def chosen(source: str | None) -> str | None:
    """The given source, else the environment's, with absolute paths; None without either.

    Raises:
        UsageError: The source is written otherwise.
        SealError: The program does not exist.
    """
    source = source or os.environ.get(SOURCE_VARIABLE)
    return None if source is None else settled(source)


def tried(source: str | None) -> str | None:
    """The `chosen` source, after reading its key once to report errors at startup.

    Raises:
        UsageError: The source is written otherwise.
        SealError: The key cannot be read.
    """
    found = chosen(source)
    if found is not None:
        read(found)
    return found


def settled(source: str) -> str:
    """The source with the path of its file or program made absolute.

    Raises:
        UsageError: The source is written otherwise.
        SealError: The program does not exist.
    """
    form, rest = _split(source)
    if form == "file":
        return f"file:{Path(rest).absolute()}"
    if form == "command":
        program, *arguments = _words(rest)
        found = shutil.which(program)
        if found is None:
            raise SealError(f"{program} must be a program that prints the key, got none there.")
        return f"command:{shlex.join([str(Path(found).absolute()), *arguments])}"
    return source


def forget() -> None:
    """Remove the key and its source from this process's environment.

    Unsetting a variable leaves its value in the initial environment block, which is visible in
    /proc/PID/environ (proc(5)): so the value is overwritten first.
    """
    form, _, name = os.environ.pop(SOURCE_VARIABLE, "").partition(":")
    if form != "env" or name not in os.environ:
        return
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(os.fsencode(name))
    if address:
        ctypes.memset(address, 0, len(os.fsencode(os.environ[name])))
    del os.environ[name]


def _split(source: str) -> tuple[str, str]:
    form, _, rest = source.partition(":")
    if form not in _FORMS or not rest.strip():
        # a key that was given in place of a source must not be logged
        given = f"{form}: without more" if form in _FORMS else "something else"
        raise UsageError(
            f"a key's source (a flag, or {SOURCE_VARIABLE}) must be file:PATH, env:NAME or "
            f"command:PROGRAM ARGUMENTS, got {given}."
        )
    return form, rest


def _from_file(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file, not of what may be at the path now
            text = file.read(4096)
    except OSError as error:
        raise SealError(f"{path} must be a file with a key, got: {error.strerror}.") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise SealError(
            f"{path} must be readable by its owner alone, got mode {mode:04o} and owner "
            f"{status.st_uid}. Run: chmod 600 {path}"
        )
    return text.decode(errors="replace")


def _from_environment(name: str) -> str:
    if name not in os.environ:
        raise SealError(f"the environment variable {name} must hold a key, got none of that name.")
    return os.environ[name]


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(f"a key's command must be quoted as in a shell, got: {error}.") from error


def _from_command(command: str) -> str:
    program, *arguments = _words(command)
    try:
        done = subprocess.run(  # its stderr is ours; its output is never logged
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "no end in time"
        raise SealError(
            f"{program} must print a key within {_COMMAND_TIMEOUT_S} s, got: {reason}."
        ) from None
    if done.returncode:
        raise SealError(f"{program} must print a key and end with 0, got {done.returncode}.")
    return done.stdout.decode(errors="replace")
