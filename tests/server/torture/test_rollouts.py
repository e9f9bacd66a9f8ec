"""Versions are rolled out under load."""

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
"""Its worker refuses to load; its outputs differ from its golden cases."""


def test_versions_roll_out_and_back(
    running: server.Server, archives: Path, amount: Amount, figures: Figures
) -> None:
    """No request fails; the version that was rolled out last responds, never a broken one."""
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
    figures.add(f"{case}; without retries", tallies[0], f"{refused} rolled back")
    figures.add("the same; with retries", tallies[1])
    for tally in tallies:
        assert tally.all_correct(), tally
        assert set(tally.correct) == set(ANSWERS)
