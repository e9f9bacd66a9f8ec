"""Party 1 or 2 as a process of its own: `marship party`."""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from marship.errors import LoadError, PackageError
from marship.serving.model import dumps
from marship.serving.private.mpc import files, follower
from marship.serving.private.mpc.files import PARTY_FILE, Station
from marship.serving.private.mpc.follower import Follower
from marship.trust import archive


def opened(path: str | Path, key: str | Path) -> Station:
    """Open a party's archive; nothing in it is run.

    Args:
        path: NAME.partyN.mar.
        key: The party's private key.

    Raises:
        UsageError: The archive does not exist.
        PackageError: It is none of three parties.
        LoadError: It does not belong to the key.
    """
    dumps.forbid()
    found = archive.read(path)
    names = {member.name for member in found.members}
    if PARTY_FILE not in names:
        raise PackageError(
            f"{path} must be a party's archive, got one without {PARTY_FILE}. Package the model "
            "with: marship package RUN --private mpc"
        )
    station = files.load(found.contents(PARTY_FILE), Path(key))
    if station.own.number == 0:
        raise LoadError(
            f"{path} must be of party 1 or 2, got party 0, which a server runs. Register it: "
            "marship register"
        )
    return station


def serve(station: Station, on_ready: Callable[[str], None]) -> None:
    """Take part in sessions until SIGTERM or SIGINT.

    Args:
        station: The party.
        on_ready: Called with the address at which it listens.

    Raises:
        PartyError: It cannot listen at its address.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    address = station.program.cards[station.own.number].address
    party = Follower(station.doors, station.sit, follower.listen(address))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        party.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    on_ready(address)
    party.serve()
