"""Names of modules that handlers written for earlier versions import.

Nothing of marship uses them: a handler of one's own goes on working when it is packed again.
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
    """Finds such a module where no other finder does; it has the names of the one that it is."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  importlib's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The module, if it is one of those."""
        is_moved = fullname.removeprefix(_ROOM) in MOVED and fullname.startswith(_ROOM)
        return spec_from_loader(fullname, self) if is_moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names of the one that it is."""
        now = import_module(_ROOM + MOVED[module.__name__.removeprefix(_ROOM)])
        names = {name: value for name, value in vars(now).items() if not name.startswith("__")}
        vars(module).update(names)
