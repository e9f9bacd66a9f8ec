"""One page for Prometheus: of all workers, and of TorchServe's frontend."""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from marship.engines.addresses import Target
from marship.engines.figures import families, trials, workers
from marship.engines.figures.families import Page
from marship.engines.figures.server import FiguresPage
from marship.engines.home import Home
from marship.engines.torchserve.engine import TorchServe
from marship.engines.trials import TrialState
from marship.errors import MarshipError
from marship.exchange.transports import BlockingTransport, Bounds
from marship.serving.hosts.direct.acceptor import Acceptor

logger = logging.getLogger(__name__)

_RESPONSE_S, _MOST_BYTES = 5.0, 1 << 26
_OURS = "marship_"
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def serve(
    loop: asyncio.AbstractEventLoop,
    listener: socket.socket,
    accepting: Acceptor,
    home: Home,
    folder: Path,
) -> None:
    """Serve the page in an acceptor's loop.

    Args:
        loop: The loop.
        listener: Where Prometheus connects.
        accepting: Knows the workers.
        home: The server's.
        folder: Of the workers' sheets.
    """
    engine = TorchServe(Target(home.path))
    transport = BlockingTransport(engine, Bounds(_RESPONSE_S, _MOST_BYTES))

    def frontend() -> str:
        return transport.run(engine.metrics())

    def prepare() -> Callable[[], bytes]:
        seats = accepting.seats
        known = partial(workers.page_of, folder, seats.staff(), accepting.connections)
        return partial(_rendered, known, seats.trials.states(), frontend)

    FiguresPage(loop, listener, prepare)


def _rendered(
    known: Callable[[], Page], states: list[TrialState], frontend: Callable[[], str]
) -> bytes:
    page = known()
    trials.add_trials(page, states)
    try:
        add_frontend(page, frontend())
    except (MarshipError, OSError) as error:
        logger.warning("TorchServe's own metrics must be had, got: %s", error)
    return page.render()


def add_frontend(page: Page, text: str) -> None:
    """Add what TorchServe shows.

    Workers report their counters to it, too, some seconds late, and it shows them for ever: these
    are left out for versions whose workers count in sheets, also once such a version is
    unregistered. Archives of earlier versions of marship have none.

    Args:
        page: Of the workers.
        text: TorchServe's page.
    """
    for family in families.read(text):
        if not family.name.startswith(_OURS):
            page.families[family.name] = family
            continue
        own = page.family(family.name, family.kind)
        own.lines += [line for line in family.lines if _version(line) not in page.counted]


def _version(line: str) -> tuple[str, str]:
    """The model and the version in a sample's labels."""
    found = dict(_LABEL.findall(line))
    return found.get("model_name", ""), found.get("model_version", "")
