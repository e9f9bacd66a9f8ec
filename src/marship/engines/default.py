"""The engine of a home: the only module outside the engines' own rooms that says which one."""

from pathlib import Path

from marship.engines.addresses import Target
from marship.engines.engine import Engine
from marship.engines.home import Home, default_home
from marship.engines.torchserve.engine import TorchServe
from marship.errors import UsageError

DefaultEngine: type[Engine] = TorchServe
NAMES = ("torchserve", "ray")


def of_home(home: str | Path | None) -> type[Engine]:
    """The engine that serves a home, or did last; TorchServe where none ever did."""
    record = Home(Path(home or default_home()).absolute()).record()
    return named("torchserve" if record is None else record.engine)


def named(name: str) -> type[Engine]:
    """An engine by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in NAMES:
        raise UsageError(f"an engine must be one of {', '.join(NAMES)}, got {name!r}.")
    if name == "ray":
        from marship.engines.ray.engine import RayServe

        return RayServe
    return TorchServe


def of_target(target: Target) -> Engine:
    """The engine of a server that may be called.

    A server elsewhere is spoken to as TorchServe: its predictions are the same on all engines.

    Raises:
        UsageError: The home is another engine's than the one that is named.
    """
    if any(target.urls.values()):
        return TorchServe(target)
    engine = of_home(target.home)
    if target.engine is not None and engine is not named(target.engine):
        raise UsageError(
            f"the home must be one of {target.engine}, got one of another engine, or none. Name "
            "it with --home, or leave --engine out."
        )
    return engine(target)
