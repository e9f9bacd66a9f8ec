"""What handlers written for earlier versions use: old module names, and a method of old.

marship itself does not use them; custom handlers keep working when they are packaged again.
"""

import inspect
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

from marship.errors import LoadError

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


def check_methods(kind: type) -> None:
    """Refuse a handler whose own way to send responses would never be called.

    Raises:
        LoadError: It has such a method.
    """
    result = getattr(kind, "answer", None)
    if callable(result) and "send" in inspect.signature(result).parameters:
        raise LoadError(
            f"{kind.__name__} must override decode and encode, or answers of StreamHandler, got "
            "answer(requests, send) of an earlier version, which nothing calls any more. Yield "
            "from answers what it sent."
        )
