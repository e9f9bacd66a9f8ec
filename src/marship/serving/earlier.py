"""Old module names, which handlers written for earlier versions import.

marship itself does not use them; custom handlers keep working when they are packaged again.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "batch": "model.batch",
    "codec": "formats.codec",
    "ctc": "speech.ctc",
    "extent": "formats.extent",
    "kserve": "formats.kserve",
    "session": "model.session",
    "silence": "sounds.silence",
    "tensors": "formats.tensors",
    "transport": "message",
    "whisper": "speech.whisper",
}
_ROOM = "marship.serving."


class Finder(MetaPathFinder, Loader):
    """Imports an old module name as an alias of the new module, after all other finders."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  importlib's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The module's spec, if it is an old name."""
        is_moved = fullname.removeprefix(_ROOM) in MOVED and fullname.startswith(_ROOM)
        return spec_from_loader(fullname, self) if is_moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names of the new module."""
        now = import_module(_ROOM + MOVED[module.__name__.removeprefix(_ROOM)])
        names = {name: value for name, value in vars(now).items() if not name.startswith("__")}
        vars(module).update(names)
