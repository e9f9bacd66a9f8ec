"""What TorchServe needs: Java, and the ports of its settings."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from marship.engines.home import Home, default_home
from marship.engines.torchserve import config as configs
from marship.engines.torchserve import java as runtimes
from marship.engines.torchserve import properties
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
    source = configs.locate(None)
    try:
        listeners = dict(_listeners(properties.read(source)))
    except MarshipError as error:
        yield Finding("ports", f"unknown, in {source}", MEND, str(error))
        return
    running = Home(Path(default_home()).absolute()).running()
    if running is not None:
        yield Finding("ports", f"a server runs from {default_home()}, at {running.inference_url}")
        return
    taken = {
        name: (host, port) for name, (host, port) in listeners.items() if not _is_free(host, port)
    }
    if not taken:
        yield Finding("ports", f"free: {', '.join(str(port) for _, port in listeners.values())}")
    for name, (host, port) in taken.items():
        advice = f"End what listens there, serve with --free-ports, or change {name} in {source}."
        yield Finding("ports", f"{host}:{port} cannot be listened on", MEND, advice)


def _listeners(values: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Host and port by the name of the setting; unix sockets have none."""
    for name in configs.HTTP_ADDRESSES:
        parts = urlsplit(values.get(name, ""))
        if parts.hostname and parts.port:
            yield name, (parts.hostname, parts.port)
    for name in configs.GRPC_PORTS:
        if (port := values.get(name, "")).isdecimal():
            host = values.get(name.replace("_port", "_address"), "127.0.0.1")
            yield name, (host, int(port))


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
