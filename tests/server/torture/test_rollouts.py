"""Versions that come and go while clients ask."""

from collections.abc import Callable
from pathlib import Path

import pytest

from figures import Figures
from loads import two_loads
from marship import Client
from marship.engines.torchserve import server
from marship.errors import RolloutError
from marship.operate.rollout import rollout
from versions import ANSWERS, ROW, remove, versions

Amount = Callable[[float, float], float]

TIMEOUT_S = 20.0
BROKEN = ("broken.mar", "wrong.mar")
"""Its worker refuses to load; its worker answers otherwise than recorded."""


def test_versions_roll_out_and_back(
    running: server.Server, archives: Path, amount: Amount, figures: Figures
) -> None:
    """No request fails, and what answers is what was rolled out last, never a broken version."""
    assert archives.is_dir()
    good, refused = int(amount(1, 20)), 0
    with Client(running.home.path) as client:
        client.register("lin-1.mar", name="lin", workers=1)
        with two_loads(running.home.path, "lin", ROW, ANSWERS, TIMEOUT_S) as tallies:
            for turn in range(good):
                new = "21"[turn % 2]
                rollout(client, f"lin-{new}.mar")
                assert versions(client, "lin") == [new, new]
                if turn % 2 == 0:
                    with pytest.raises(RolloutError, match=f"{new} is the default as before"):
                        rollout(client, BROKEN[turn // 2 % 2])
                    refused += 1
                    assert versions(client, "lin") == [new, new]
        remove(client, "lin")
    case = f"{good} rollouts, and {refused} of broken versions"
    figures.add(f"{case}; asked once", tallies[0], f"{refused} rolled back")
    figures.add("the same; asked again", tallies[1])
    for tally in tallies:
        assert tally.all_answered(), tally
        assert set(tally.answered) == set(ANSWERS)
