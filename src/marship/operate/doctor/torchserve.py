"""What TorchServe needs: Java, a home, and the ports of its settings."""

import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from marship.engines.home import Home, default_home
from marship.engines.torchserve import config as configs
from marship.engines.torchserve import java as runtimes
from marship.errors import MarshipError
from marship.operate.doctor.finding import MEND, Finding


def java() -> Finding:
    """The Java that `marship serve` would start."""
    try:
        found = runtimes.find()
    except MarshipError as error:
        return Finding("Java", "none that TorchServe runs on", MEND, str(error))
    return Finding("Java", f"{found.version}, {found.path}")


def ports() -> Iterator[Finding]:
    """The ports that `marship serve` would listen on, if no flag names others."""
    source, home = configs.locate(None), Home(Path(default_home()).absolute())
    try:
        values = configs.checked(source, home=home.path, ports={})
        running = home.running()
    except MarshipError as error:
        yield Finding("ports", f"unknown, in {source}", MEND, str(error))
        return
    if running is not None:
        yield Finding("ports", f"a server runs from {default_home()}, at {running.inference_url}")
        return
    listeners = list(configs.listeners(values))
    taken = _taken(listeners)
    if not taken:
        yield Finding("ports", f"free: {', '.join(str(port) for *_, port in listeners)}")
    for name, host, port in taken:
        advice = f"End what listens there, serve with --free-ports, or change {name} in {source}."
        yield Finding("ports", f"{host}:{port} cannot be listened on", MEND, advice)


def _taken(listeners: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Those that cannot be listened on, all at the same time: two may have the same port."""
    found = []
    with ExitStack() as held:
        for name, host, port in listeners:
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError:
                found.append((name, host, port))
    return found


def home() -> Finding:
    """The folder that a server writes to."""
    path = Path(default_home()).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".marship-doctor-"):
            return Finding("home", str(path))
    except OSError as error:
        advice = "Name a folder that can be written to: --home, or MARSHIP_HOME."
        return Finding("home", f"{path}: {error.strerror}", MEND, advice)
