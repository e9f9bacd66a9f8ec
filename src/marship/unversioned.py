"""Keeps files with secrets out of version control: `git add .` takes what nothing ignores.

A folder that is made for secrets ignores all that is in it. In a folder that is there already
only the secret itself is ignored, by a .gitignore of ours; one that somebody else wrote is not
edited, so then it has to ignore the secret already.
"""

import shutil
import subprocess
from pathlib import Path

from marship import storage
from marship.errors import UsageError

IGNORE_FILE = ".gitignore"
_HEAD = "# written by marship: what is named here is secret\n"


def make_folder(folder: Path) -> None:
    """Make a folder for its owner alone that git takes nothing of; one that is there stays as is.

    Raises:
        OSError: It cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        cover(folder)


def cover(folder: Path) -> None:
    """Let git ignore all that is in a folder of ours, unless a .gitignore is there.

    Raises:
        StorageError: It does not fit on the disk; half of one would count as somebody else's.
    """
    if not (folder / IGNORE_FILE).exists():
        with storage.replacing(folder / IGNORE_FILE) as draft:
            draft.write_text(f"{_HEAD}*\n")


def ignore(secret: Path) -> None:
    """Make sure that git ignores a file, before it is written.

    Args:
        secret: Its name must mean nothing to a .gitignore, as those of keys do not.

    Raises:
        UsageError: The folder's .gitignore is somebody else's, and does not name it.
    """
    file = secret.parent / IGNORE_FILE
    if not file.exists():
        with storage.replacing(file) as draft:
            draft.write_text(_HEAD)
    text = file.read_text(errors="replace")
    if not text.startswith(_HEAD):
        _require_ignored(secret)
    elif not {"*", f"/{secret.name}"} & set(text.splitlines()):
        with file.open("a") as lines:
            lines.write(f"/{secret.name}\n")


def _require_ignored(secret: Path) -> None:
    """Where no work tree is above the folder there is nobody who could add it."""
    folder = secret.parent.absolute().resolve()
    if not any((above / ".git").exists() for above in (folder, *folder.parents)):
        return
    git = shutil.which("git")
    words = [git or "git", "-C", str(folder), "check-ignore", "--quiet", "--no-index", secret.name]
    if git is None or subprocess.run(words, capture_output=True, check=False).returncode:
        raise UsageError(
            f"{secret} must be ignored by git, got a {IGNORE_FILE} beside it without its name. "
            f"Add the line /{secret.name} there, or choose a new folder."
        )
