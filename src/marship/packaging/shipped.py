"""Where the files lie that come with marship and are the reader's to change.

A checkout has them at its top; an installed wheel under `share/marship` of its environment.
"""

import sysconfig
from pathlib import Path

from marship.errors import UsageError


def find(name: str) -> Path:
    """The file `name`: from the current folder if it is there, else as it was shipped.

    Raises:
        UsageError: It is in neither place.
    """
    checkout = Path(__file__).parents[3]
    installed = Path(sysconfig.get_path("data")) / "share" / "marship"
    for folder in (Path.cwd(), checkout, installed):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{name} must be a file here or one that comes with marship, got none.")
