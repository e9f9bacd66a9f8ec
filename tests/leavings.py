"""What a Python program writes below a folder for a moment, kept and searched.

An audit hook (PEP 578) sees every file that Python removes, replaces or empties, whoever wrote
it, before that is done. Unseen is what C code removes by itself, and bytes written over in place.
"""

import itertools
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

WATCHED, KEPT = "watched", "kept"
RUN = "import sys, pathlib, leavings; leavings.keep_all(pathlib.Path.cwd().parent);"


def keep_all(folder: Path) -> None:
    """Let no file below `watched` vanish from now on: another name in `kept` holds it."""
    names = map(str, itertools.count())

    def keep(path: object, folder_fd: int, move: Callable[[Path, Path], object]) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor: its file was opened by name before
        above = Path(f"/proc/self/fd/{folder_fd}").readlink() if folder_fd >= 0 else Path.cwd()
        full = above / os.fsdecode(path)
        if full.is_relative_to(folder / WATCHED) and full.is_file():
            move(full, folder / KEPT / next(names))

    def hook(event: str, args: tuple[object, ...]) -> None:
        match event, args:
            case "os.remove", (path, int(folder_fd)):
                keep(path, folder_fd, os.link)
            case "os.rename", (_, path, _, int(folder_fd)):
                keep(path, folder_fd, os.link)
            case "open", (_, _, int(flags)) if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError("a file must have a name; tempfile then gives it one for a moment")
            case "open", (path, _, int(flags)) if flags & os.O_TRUNC:
                keep(path, -1, Path.rename)

    sys.addaudithook(hook)


def leavings(folder: Path, code: str, *arguments: object) -> list[Path]:
    """Run Python code in `watched`, its temporary folder too; all files that were ever there."""
    for name in (WATCHED, KEPT):
        (folder / name).mkdir()
    inside = str(folder / WATCHED)
    subprocess.run(
        [sys.executable, "-c", f"{RUN}\n{code}", *map(str, arguments)],
        env={**os.environ, "TMPDIR": inside, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=inside,
        check=True,
    )
    return [path for path in folder.rglob("*") if path.is_file()]


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and where it is a zip file, what is packed in it by name."""
    yield path.name, path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            yield from ((name, zipped.read(name)) for name in zipped.namelist())
