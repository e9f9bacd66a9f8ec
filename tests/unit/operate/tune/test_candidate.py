"""Ways to serve an archive: as its settings, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.operate.tune.candidate import Candidate, Choices

CORES = st.sampled_from([1, 2, 3, 4, 6, 8, 16, 64])


@given(CORES, st.integers(1, 64), st.sampled_from(["direct", "torchserve"]), st.data())
def test_settings_say_what_a_candidate_is(
    cores: int, most_batch: int, host: str, data: st.DataObject
) -> None:
    """What is written for any candidate of any grid is read as that candidate."""
    grid = Choices(["exported"], cores, most_batch, [host]).grid()
    one = data.draw(st.sampled_from(grid))
    base = {"maxWorkers": data.draw(st.integers(1, 9)), "marship": {"intra_op_threads": 3}}
    config = one.config(base, cores)
    assert Candidate.of(config, "exported", cores, host) == one
    assert config["maxWorkers"] >= config["minWorkers"]


@given(CORES, st.integers(1, 200))
def test_a_grid_repeats_nothing_and_overloads_no_machine(cores: int, most_batch: int) -> None:
    """Each way once; at most two threads for each core; no batch that could never fill."""
    grid = Choices(["a", "b"], cores, most_batch, ["direct", "torchserve"]).grid()
    assert len(set(grid)) == len(grid)
    assert all(one.workers * one.threads <= 2 * cores for one in grid)
    assert all(one.batch < 2 * most_batch for one in grid)
    assert {(1, 1), (cores, 1)} <= {(one.workers, one.threads) for one in grid}


def test_other_settings_stay() -> None:
    """Timeouts, the handler's settings and providers are not tuning's."""
    base = {"responseTimeout": 7, "handler": {"k": 3}, "marship": {"providers": ["cuda", "cpu"]}}
    config = Candidate("exported", 2, 1, 8).config(base, 2)
    assert config["responseTimeout"] == 7
    assert config["handler"] == {"k": 3}
    assert config["marship"]["providers"] == ["cuda", "cpu"]
    assert config["marship"]["profile"] == "throughput"


def test_threads_are_left_to_the_rule_where_it_says_the_same() -> None:
    """Cores divided by workers: the archive then suits other machines, too."""
    assert "intra_op_threads" not in Candidate("exported", 2, 2, 1).config({}, 4)["marship"]
    assert Candidate("exported", 2, 1, 1).config({}, 4)["marship"]["intra_op_threads"] == 1


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Candidate("exported", 2, 1, 8), "exported, 2 x 1 thread, batch 8"),
        (Candidate("a", 1, 2, 1, spinning=True), "a, 1 x 2 threads, spinning, batch 1"),
        (Candidate("a", 1, 1, 4, 5, host="torchserve"), "delay 5 ms, torchserve"),
    ],
)
def test_a_candidate_in_words(one: Candidate, text: str) -> None:
    """What differs between candidates is all there."""
    assert text in str(one)
