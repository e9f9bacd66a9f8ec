"""Keeps files with secrets out of version control: `git add .` adds what is not ignored.

A folder created for secrets ignores all its content. In an existing folder only the secret itself
is ignored, by a .gitignore that marship writes; a .gitignore by anyone else is not edited, so it
must ignore the secret already.
"""

import shutil
import subprocess
from pathlib import Path

from marship import storage
from marship.errors import UsageError

IGNORE_FILE = ".gitignore"
_HEAD = "# written by marship: what is named here is secret\n"


def make_folder(folder: Path) -> None:
    """Create a private folder that git ignores; an existing one is left unchanged.

    Raises:
        OSError: It cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        cover(folder)


def cover(folder: Path) -> None:
    """Let git ignore the content of a folder of ours, unless it has a .gitignore.

    Raises:
        StorageError: The disk is full; a truncated .gitignore would not be recognized as ours.
    """
    if not (folder / IGNORE_FILE).exists():
        with storage.replacing(folder / IGNORE_FILE) as draft:
            draft.write_text(f"{_HEAD}*\n")


def ignore(secret: Path) -> None:
    """Make sure that git ignores a file before it is written.

    Args:
        secret: A name without special characters of .gitignore, as the names of keys are.

    Raises:
        UsageError: The folder's .gitignore was not written by marship and does not name the file.
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
    """Outside of a git work tree there is nothing to require."""
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
