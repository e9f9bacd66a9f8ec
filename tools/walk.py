"""Follow a step through the rooms: in which order it enters them, and how often it climbs back up.

    python tools/walk.py package FILE.onnx
    python tools/walk.py optimize RUN_FOLDER

Every function of marship counts where it is first called, so that loops do not. The ground (errors,
contract, storage and the like, which every room uses) is no place on the way. What is imported on
the way is imported before. `package` proves an ONNX file in a process of its own; here it does so
in this one. `optimize` searches and measures for a short time.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType

import rooms

GROUND = {
    "contract",
    "errors",
    "storage",
    "texts",
    "console",
    "settings",
    "profiles",
    "version",
}
GROUND |= {"unversioned", "arguments", "__init__"}


def follow(step: Callable[[], object]) -> list[str]:
    """The rooms that a step enters, in turn."""
    seen: set[tuple[str, int]] = set()
    path: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        place = code.co_filename, code.co_firstlineno
        file = Path(code.co_filename)
        if event != "call" or place in seen or not file.is_relative_to(rooms.SOURCE):
            return
        seen.add(place)
        room = file.relative_to(rooms.SOURCE).parts[0].removesuffix(".py")
        is_function = not code.co_name.startswith("<") and file.name != "earlier.py"  # a hook
        if is_function and room not in GROUND and path[-1:] != [room]:
            path.append(room)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return path


def climbs(path: list[str]) -> int:
    """How often the next room is on a higher floor."""
    drawing = rooms.draw(rooms.SOURCE)
    floors = {room: number for number, floor in enumerate(drawing.floors) for room in floor}
    return sum(floors[to] > floors[at] for at, to in pairwise(path))


def _package(file: Path) -> object:
    from marship.packaging import step
    from marship.proof import onnx_proof

    onnx_proof.describe = onnx_proof._prove
    with tempfile.TemporaryDirectory() as store:
        return step.package(file, step.PackageSettings(model_store=Path(store)))


def _optimize(run_dir: Path) -> object:
    from marship.optimizing import step

    return step.optimize(run_dir, step.OptimizeSettings(again=True, search_s=5, measure_s=1))


STEPS: dict[str, Callable[[Path], object]] = {"package": _package, "optimize": _optimize}


def _import_all() -> None:
    for path in sorted(rooms.SOURCE.rglob("*.py")):
        parts = path.relative_to(rooms.SOURCE.parent).with_suffix("").parts
        if "handlers" not in parts and parts[-1] not in ("__main__", "loading_process"):
            importlib.import_module(".".join(parts).removesuffix(".__init__"))


if __name__ == "__main__":
    name, source = sys.argv[1:]
    _import_all()
    walked = follow(lambda: STEPS[name](Path(source)))
    print(f"{len(set(walked))} rooms, {len(walked) - 1} moves, {climbs(walked)} climbs")
    print(" ".join(walked))
