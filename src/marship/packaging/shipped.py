"""The handlers that come with marship: `marship/handlers`, which a checkout has at its top.

They are the reader's to copy; a copy is named by its path.
"""

from pathlib import Path

from marship.errors import UsageError

HANDLERS = Path(__file__).parents[1] / "handlers"


def handler(name: str) -> Path:
    """A handler's file: `onnx_handler.py` is marship's own, `handlers/mine.py` the one there.

    A bare name that marship has is marship's, whatever lies in the current folder.

    Raises:
        UsageError: There is no such file.
    """
    path = Path(name)
    if path.name == name and (HANDLERS / name).is_file():
        return HANDLERS / name
    if path.is_file():
        return path
    own = ", ".join(sorted(file.name for file in HANDLERS.glob("*.py")))
    raise UsageError(f"{name} must be a file, or a handler of marship's ({own}), got none there.")


def named(path: Path) -> Path:
    """The file that somebody named, or marship's own where there is no such file.

    Raises:
        UsageError: There is none.
    """
    return path if path.is_file() else handler(str(path))
