"""Shell completion of archives in the model store, and of models on the server."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from marship.errors import MarshipError

_TIMEOUT_S = 2.0


def archives(ctx: Any, incomplete: str) -> list[str]:  # noqa: ANN401  Typer's context
    """The file names in the model store of the home's server, or of the current folder."""
    return [name for name in _archives(ctx.params.get("home")) if name.startswith(incomplete)]


def _archives(home: Path | None) -> Iterator[str]:
    from marship.engines.home import Home, default_home

    store = Path("model_store")
    with suppress(MarshipError, OSError):
        if record := Home(Path(home or default_home()).absolute()).running():
            store = Path(record.model_store)
    with suppress(OSError):
        yield from sorted(path.name for path in store.glob("*.mar"))


def models(ctx: Any, incomplete: str) -> list[str]:  # noqa: ANN401  Typer's context
    """The models of the server that the environment, or `--home`, names; none without one."""
    from marship.client import Client

    with (
        suppress(MarshipError, OSError),
        Client(ctx.params.get("home"), timeout_s=_TIMEOUT_S) as client,
    ):
        return [one.name for one in client.models() if one.name.startswith(incomplete)]
    return []
