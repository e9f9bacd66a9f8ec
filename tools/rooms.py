"""Draw who imports whom in src/marship: its folders and loose files, from the top to the ground.

    python tools/rooms.py [FOLDER]

A room is a folder or a file right in the source folder. Each stands above all that it imports, in
whatever function the import stands; what is imported for types alone does not count.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "marship"


@dataclass(frozen=True)
class Drawing:
    """The rooms by floor, the ground first, and what each imports."""

    floors: list[list[str]]
    arrows: dict[str, set[str]]

    def __str__(self) -> str:
        """A line for each room, the top first."""
        width = max(map(len, self.arrows))
        count = sum(map(len, self.arrows.values()))
        lines = [f"{len(self.arrows)} rooms, {len(self.floors)} floors, {count} arrows"]
        for number in range(len(self.floors), 0, -1):
            for room in self.floors[number - 1]:
                below = ", ".join(sorted(self.arrows[room]))
                arrow = f"-> {below}" if below else ""
                line = f"{number:2}  {room:<{width}} {arrow}"
                lines.append(line.rstrip())
        return "\n".join(lines)


def draw(source: Path) -> Drawing:
    """The rooms of a source folder.

    Raises:
        ValueError: Some import each other in a circle.
    """
    arrows: dict[str, set[str]] = {}
    for path in sorted(source.rglob("*.py")):
        if path.parts[len(source.parts)] in ("handlers", "training"):
            continue  # links to the reader's code
        room = _room(path.relative_to(source))
        below = arrows.setdefault(room, set())
        below |= {to for to in _targets(ast.parse(path.read_text()), source) if to != room}
    return Drawing(_floors(arrows), arrows)


def _room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _targets(tree: ast.AST, source: Path) -> Iterator[str]:
    """The rooms that a file imports."""
    for module in _imported(tree):
        first = module.split(".")[0]
        if first and ((source / f"{first}.py").is_file() or (source / first).is_dir()):
            yield first


def _imported(tree: ast.AST) -> Iterator[str]:
    """Modules of marship, without `marship.`; a TYPE_CHECKING block is passed over."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "marship":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("marship."):
            yield str(node.module).removeprefix("marship.")
        else:
            yield from _imported(node)


def _floors(arrows: dict[str, set[str]]) -> list[list[str]]:
    floors: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(arrows):
        floor = sorted(room for room in arrows if room not in placed and arrows[room] <= placed)
        if not floor:
            rest = ", ".join(sorted(set(arrows) - placed))
            raise ValueError(f"rooms must not import each other in a circle, got some among {rest}")
        floors.append(floor)
        placed |= set(floor)
    return floors


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if sys.argv[1:] else SOURCE))
