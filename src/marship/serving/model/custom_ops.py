"""Libraries of custom operators: native code that ONNX Runtime loads into the process.

A library exports `RegisterCustomOps` (onnxruntime_c_api.h) and is built for one platform. The
contract has its digest, and nothing of it is run before that was compared.
"""

import ctypes
import platform
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from marship.contract import LIBRARIES_FOLDER, Library, digest_files
from marship.errors import LoadError

_MAGIC = b"\x7fELF"
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""`e_machine` of ELF's header (elf.h), as `uname -m` names it."""
_FIELDS, _BYTES = "16xHH", 20  # e_ident, e_type and e_machine
_SHARED = 3  # ET_DYN
_BIG_ENDIAN = b"\x02"  # EI_DATA, ELFDATA2MSB


def here() -> str:
    """This machine's platform, such as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine()}"


def describe(path: Path) -> Library:
    """A library's digest and platform, read from its header; nothing of it is run.

    Raises:
        LoadError: It is no shared library.
        OSError: It cannot be read.
    """
    if stat.S_ISFIFO(path.stat().st_mode):
        raise LoadError(
            f"{path.name} must be a shared library of Linux (ELF) with custom operators, got a "
            "named pipe. Name a file."
        )
    with path.open("rb") as file:
        head = file.read(_BYTES)
    is_elf = head.startswith(_MAGIC) and len(head) == _BYTES
    order = ">" if head[5:6] == _BIG_ENDIAN else "<"
    kind, machine = struct.unpack(order + _FIELDS, head) if is_elf else (0, 0)
    if kind != _SHARED:
        raise LoadError(
            f"{path.name} must be a shared library of Linux (ELF) with custom operators, got "
            "another file. Build it with -shared -fPIC."
        )
    built_for = f"linux-{_MACHINES.get(machine, f'machine-{machine}')}"
    return Library(path.name, digest_files(path), built_for)


def check_platform(library: Library) -> None:
    """Check that a library is built for this machine.

    Raises:
        LoadError: It is built for another.
    """
    if library.platform != here():
        raise LoadError(
            f"{library.file} must be built for this machine, {here()}, got one for "
            f"{library.platform}. Package the model with a library for {here()}."
        )


def verified(folder: Path, libraries: Iterable[Library]) -> tuple[Path, ...]:
    """The files of an extracted archive's libraries, each as its contract has it.

    Raises:
        LoadError: One is missing, altered, or built for another platform.
    """
    paths = []
    for library in libraries:
        check_platform(library)
        path = folder / LIBRARIES_FOLDER / library.file
        try:
            found = digest_files(path)
        except OSError as error:
            raise LoadError(
                f"{LIBRARIES_FOLDER}/{library.file} must be in the archive, got: {error}. "
                "Package again."
            ) from error
        if found != library.sha256:
            raise LoadError(
                f"{library.file} must have the SHA-256 {library.sha256[:12]}... that the contract "
                f"names, got {found[:12]}.... It was altered: package again."
            )
        paths.append(path)
    return tuple(paths)


def register(options: Any, libraries: Iterable[Path]) -> None:  # noqa: ANN401  SessionOptions
    """Load libraries into this process, for the sessions of these options, until it ends.

    Raises:
        LoadError: One lacks what it needs, or `RegisterCustomOps`.
    """
    for path in libraries:
        try:
            # absolute: the loader looks for a bare name in the system's folders
            options.register_custom_ops_library(str(path.absolute()))
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            reason = str(error).strip().splitlines()[0].rpartition(" : ")[2]
            raise LoadError(
                f"{path.name} must be a library of custom operators that loads here, got: "
                f"{reason}. Install what it needs, or build it against this ONNX Runtime."
            ) from error
        # ONNX Runtime unloads a library with its last session. Copies of one library share symbols
        # (C++ statics), as where Python has imported it too: the next one would call what is gone.
        ctypes.CDLL(str(path.absolute()))
