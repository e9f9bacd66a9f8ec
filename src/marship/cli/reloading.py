"""`serve --reload`: which flags go together, and what is told of each save."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from marship import console
from marship.errors import MarshipError, UsageError

if TYPE_CHECKING:
    from marship.operate.reload import Reloadable


def asked(source: Path | None, package: Path | None, **others: object) -> "Reloadable | None":
    """What the flags say; None where nothing is followed.

    Args:
        source: That of --reload.
        package: That of --reload-package.
        others: Flags that must not be given with it, by name.

    Raises:
        UsageError: The flags contradict each other, or a file is not there or invalid.
    """
    if source is None:
        if package is not None:
            raise UsageError("--reload-package must come with --reload, got it alone.")
        return None
    if given := next((name for name, value in others.items() if value), None):
        raise UsageError(
            f"--reload must come without --{given}, got both: it is for a developer's terminal, "
            "and what it packs is not signed."
        )
    from marship.operate.reload import Reloadable

    found = Reloadable(source, package)
    found.check()
    return found


@contextmanager
def followed(home: Path, what: "Reloadable | None") -> Iterator[Callable[[], None]]:
    """Yield what starts to follow the files; it ends with the context."""
    if what is None:
        yield lambda: None
        return
    from marship.operate.reload import Reloading, ReloadListener

    class Told(ReloadListener):
        """Prints a line for each save."""

        def on_served(self, name: str, version: str) -> None:
            console.err.print(f"{name} {version} serves", markup=False, soft_wrap=True)

        def on_error(self, error: MarshipError | OSError) -> None:
            console.tell(error)

    reloading = Reloading(home, what, Told())
    try:
        yield reloading.start
    finally:
        reloading.end()
