"""The handlers that ship with marship: `marship/handlers`; at the top level in a checkout.

Users may copy and change them; a copy is given by its path.
"""

from pathlib import Path

from marship.errors import UsageError

HANDLERS = Path(__file__).parents[1] / "handlers"


def handler(name: str) -> Path:
    """A handler's file: `onnx_handler.py` is marship's, `handlers/mine.py` is that path.

    A bare name of a handler of marship is marship's, even if the current folder has that file.

    Raises:
        UsageError: The file does not exist.
    """
    path = Path(name)
    if path.name == name and (HANDLERS / name).is_file():
        return HANDLERS / name
    if path.is_file():
        return path
    own = ", ".join(sorted(file.name for file in HANDLERS.glob("*.py")))
    raise UsageError(f"{name} must be a file, or a handler of marship's ({own}), got none there.")


def named(path: Path) -> Path:
    """The given file, or marship's handler of that name if the file does not exist.

    Raises:
        UsageError: Neither exists.
    """
    return path if path.is_file() else handler(str(path))
