"""The acceptor of the direct data plane, as a process of its own beside TorchServe.

It follows TorchServe's management API: which models there are, which version is the default, how
many workers there should be. A parent keeps the listening sockets and starts the acceptor again
where it dies, so that clients that connect meanwhile wait and are not refused. The same parent
keeps the gateway running, which serves gRPC from the acceptor's unix socket.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from marship.engines import listeners, processes
from marship.engines.addresses import SPANS_SOCKET, Target
from marship.engines.figures import requests
from marship.engines.home import DIRECT_SOCKET, SHEETS_FOLDER, WORKERS_SOCKET, Home
from marship.engines.processes import Group
from marship.engines.torchserve import config as configs
from marship.engines.torchserve import supervisor
from marship.engines.torchserve.engine import TorchServe
from marship.errors import MarshipError, ServerError
from marship.exchange import sockets
from marship.exchange.transports import BlockingTransport, Bounds

logger = logging.getLogger(__name__)

WORKERS_ENV, KEY_FILE_ENV, QUEUE_ENV, HEADERS_ENV, SHEETS_ENV = (
    "MARSHIP_DIRECT_WORKERS", "MARSHIP_DIRECT_KEY_FILE", "MARSHIP_DIRECT_QUEUE",
    "MARSHIP_DIRECT_HEADERS", "MARSHIP_SHEETS",
)  # fmt: skip
"""Told to workers: where the acceptor takes them, the key file, how many requests may wait, headers
of every response, and the folder in which they count."""


_FOLLOW_S, _RESPONSE_S, _MOST_BYTES = 0.4, 5.0, 1 << 26
_START_S, _POLL_S = 20.0, 0.02
_GRPC_STARTED, _SERVED, _ROSTER = "grpc.started", "direct.served", "direct.workers.json"


def worker_environment(
    temporary: Path, home: Home, values: Mapping[str, str], written: Mapping[str, str]
) -> dict[str, str]:
    """The environment that lets workers serve directly.

    Args:
        temporary: The server's temporary folder.
        home: Its home.
        values: Its settings.
        written: What `requests.variables` has made.
    """
    settings = {
        WORKERS_ENV: str(temporary / WORKERS_SOCKET),
        QUEUE_ENV: values.get("job_queue_size", "1000"),
        HEADERS_ENV: json.dumps(_headers(values)),
        SHEETS_ENV: str(temporary / SHEETS_FOLDER),
        **written,
    }
    (temporary / SHEETS_FOLDER).mkdir(mode=0o700)
    if values.get("disable_token_authorization") != "true":
        settings[KEY_FILE_ENV] = str(home.key_file)
    return settings


def start(
    home: Home,
    temporary: Path,
    address: str,
    values: Mapping[str, str],
    written: Mapping[str, str],
) -> Group:
    """Start the acceptor, and return when it listens.

    Args:
        home: The server's.
        temporary: Its temporary folder, for sockets.
        address: Where clients connect, such as http://127.0.0.1:8079.
        values: The server's settings.
        written: What `requests.variables` has made.

    Raises:
        ServerError: It does not start.
    """
    settings = {
        "home": str(home.path),
        "temporary": str(temporary),
        "address": address,
        "prometheus": values[configs.PROMETHEUS_ADDRESS],
        "grpc": values.get(configs.GRPC_ADDRESS),
        "engine": configs.address_url(values, "inference_address"),
        "tokens": values.get("disable_token_authorization") != "true",
        "request_bytes": int(values.get("max_request_size", 6553500)),
        "headers": _headers(values),
        "written": {name: text for name, text in written.items() if name == requests.LOG_ENV},
    }
    # what opens a collector must not be seen among arguments
    traced = {requests.TRACES_ENV: written.get(requests.TRACES_ENV, "")}
    log = home.direct_log
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=home.path,
            env={**os.environ, **traced},
            umask=0o077,
            start_new_session=True,
        )
    group = Group(process.pid, processes.start_time(process.pid), processes.boot_id())
    wanted = [DIRECT_SOCKET] + [_GRPC_STARTED] * (configs.GRPC_ADDRESS in values)
    end = time.monotonic() + _START_S
    while missing := [name for name in wanted if not (temporary / name).exists()]:
        if process.poll() is not None or time.monotonic() > end:
            group.kill()
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise ServerError(_not_served(missing[0], values, lines[-1]))
        time.sleep(_POLL_S)
    return group


def _not_served(missing: str, values: Mapping[str, str], got: str) -> str:
    name = configs.DIRECT_ADDRESS if missing == DIRECT_SOCKET else configs.GRPC_ADDRESS
    if got.endswith(values[configs.PROMETHEUS_ADDRESS]):
        name = configs.PROMETHEUS_ADDRESS
    flag = "--" + name.replace("_address", "-port")
    return (
        f"{name} {values[name]} must be served, got: {got}. Choose another with {flag}, or leave "
        "it out."
    )


def _listeners(address: str, temporary: Path) -> list[socket.socket]:
    """The sockets that clients connect to: the address's, and a unix socket."""
    path = temporary / DIRECT_SOCKET
    path.unlink(missing_ok=True)
    public = _listening(address)
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"{path}.new")
    local.listen(listeners.BACKLOG)
    Path(f"{path}.new").rename(path)  # it is there once it listens
    return [public, local]


def _listening(address: str) -> socket.socket:
    parts = urlsplit(address)
    return listeners.clients(parts.hostname or "", parts.port or 0)


def main(settings: Mapping[str, object]) -> None:
    """Keep the acceptor and the gateway running until the server has ended, or SIGTERM."""
    temporary = Path(str(settings["temporary"]))
    try:
        channel = listeners.workers(temporary / WORKERS_SOCKET)
        address = str(settings["prometheus"])
        figures = _listening(address)
        address = str(settings["address"])
        clients = _listeners(address, temporary)
    except OSError as error:
        sys.exit(f"{error.strerror}: {address}")
    children = {"acceptor": partial(_serve, settings, clients, channel, figures)}
    if settings["grpc"]:
        children["gateway"] = partial(_serve_grpc, settings)
    supervisor.keep(children)


def _serve_grpc(settings: Mapping[str, object]) -> None:
    from marship.engines.gateway import server

    processes.raise_open_files()
    temporary = Path(str(settings["temporary"]))
    server.run(
        str(settings["grpc"]),
        temporary / DIRECT_SOCKET,
        int(str(settings["request_bytes"])),
        lambda _port: (temporary / _GRPC_STARTED).touch(),
        key_file=Home(Path(str(settings["home"]))).key_file if settings["tokens"] else None,
    )


def _serve(
    settings: Mapping[str, object],
    clients: list[socket.socket],
    channel: socket.socket,
    figures: socket.socket,
) -> None:
    from marship.engines import page
    from marship.engines.figures.deaths import Deaths
    from marship.engines.torchserve import scraping
    from marship.engines.torchserve.proxied import ProxiedSpans
    from marship.serving.hosts.direct import acceptor
    from marship.serving.hosts.direct.limits import Limits

    most = min(Limits().connections, processes.raise_open_files())
    home = Home(Path(str(settings["home"])))
    limits = replace(Limits(), connections=most, request_bytes=int(str(settings["request_bytes"])))

    temporary = Path(str(settings["temporary"]))

    def follow(accepting: acceptor.Acceptor, loop: asyncio.AbstractEventLoop) -> None:
        written = cast("dict[str, str]", settings["written"])
        accepting.failures.share(temporary / SHEETS_FOLDER, written)
        accepting.spans.share(os.environ)
        ProxiedSpans(loop, home.path / SPANS_SOCKET, os.environ)
        scraping.serve(loop, figures, accepting, home, temporary / SHEETS_FOLDER)
        accepting.seats.on_death = Deaths(
            loop, temporary / SHEETS_FOLDER, accepting.seats.staff
        ).note
        threading.Thread(target=_follow, args=(home, accepting, loop), daemon=True).start()

    acceptor.run(
        clients=clients,
        workers=channel,
        key_file=home.key_file if settings["tokens"] else None,
        limits=limits,
        engine=_address(str(settings["engine"])),
        headers=cast("dict[str, str]", settings["headers"]),
        is_restart=_follows_another(temporary),
        roster=temporary / _ROSTER,
        pages=page.files(),
        on_start=follow,
    )


def _follows_another(temporary: Path) -> bool:
    """Whether an acceptor has served this server before."""
    mark = temporary / _SERVED
    is_there = mark.exists()
    mark.touch()
    return is_there


def _headers(values: Mapping[str, str]) -> dict[str, str]:
    """What TorchServe sends with every response for its cors_ settings, as it sends it."""
    names = ("origin", "methods", "headers")
    found = {f"access-control-allow-{name}": values.get(f"cors_allowed_{name}") for name in names}
    return {name: value for name, value in found.items() if value and value.isprintable()}


def _address(url: str) -> str | tuple[str, int]:
    """TorchServe's inference address: a unix socket's path, or host and port."""
    if path := sockets.path_of(url):
        return path
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


def _follow(home: Home, accepting: object, loop: asyncio.AbstractEventLoop) -> None:
    """Tell the acceptor what TorchServe has, again and again; end it with the server."""
    from marship.serving.hosts.direct.acceptor import Acceptor
    from marship.serving.hosts.direct.seats import ModelState

    assert isinstance(accepting, Acceptor)  # noqa: S101  it is loaded after the fork alone
    engine = TorchServe(Target(home.path))
    transport = BlockingTransport(engine, Bounds(_RESPONSE_S, _MOST_BYTES))
    while True:
        try:
            record = home.record()
            if record is not None and not record.group.is_alive():
                os._exit(supervisor.ENDED)
            models = transport.run(engine.models())
        except (MarshipError, OSError) as error:
            logger.warning("TorchServe's models must be known, got: %s", error)
        else:
            states = {
                model.name: ModelState(
                    model.default_version,
                    tuple(version.version for version in model.versions),
                    {version.version: version.min_workers for version in model.versions},
                    {version.version: version.ready for version in model.versions},
                )
                for model in models
            }
            loop.call_soon_threadsafe(accepting.follow, states)
        time.sleep(_FOLLOW_S)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
