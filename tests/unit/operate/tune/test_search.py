"""The search of `marship tune` on machines that are made up, whose best settings are known."""

import dataclasses
import math

import numpy as np
import pytest

from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import Demands, LoadSlice, Measured, front
from marship.operate.tune.search import FINALISTS, LEAST, SHARE, Search, Steps, ToMeasure
from simulated_machine import Machine, run, searched, shares

MACHINES = range(30)


@pytest.mark.parametrize("is_tight", [False, True])
def test_the_winner_is_near_the_best_of_the_full_grid(*, is_tight: bool) -> None:
    """With noise of 4 %, on 30 machines of 2 to 8 cores: within 2 % on nine of ten.

    Candidates at random, as many, get there on half of them.
    """
    found = shares(MACHINES, is_tight=is_tight)
    assert not [one for one in found if math.isnan(one)]
    assert np.mean([one > 0.98 for one in found]) >= 0.9


@pytest.mark.parametrize("seed", MACHINES)
def test_a_search_starts_a_fifth_of_the_grid(seed: int) -> None:
    """At most, but for small grids."""
    machine = Machine(np.random.default_rng(seed))
    search = searched(machine, machine.demands(is_tight=False))
    assert machine.measured <= max(LEAST, math.ceil(SHARE * len(machine.grid())))
    assert 1 <= len(search.finalists) <= FINALISTS


def asked(steps: Steps, answers: dict[ToMeasure, Measured], machine: Machine) -> list[ToMeasure]:
    """What a search asks for, answered from what is known, else by the machine."""
    found = []
    try:
        wanted = next(steps)
        while True:
            found.append(wanted)
            answers[wanted] = answers.get(wanted) or machine.measure(wanted)
            wanted = steps.send(answers[wanted])
    except StopIteration:
        return found


def test_a_search_that_is_told_the_same_asks_for_the_same() -> None:
    """So a run goes on from the file of an earlier one without measuring anything again."""
    machine = Machine(np.random.default_rng(7))
    demands = machine.demands(is_tight=True)
    shipped = Candidate("exported", 1, machine.cores, 1)

    def fresh() -> Search:
        return Search(machine.grid(), shipped, demands, machine.cores)

    known: dict[ToMeasure, Measured] = {}
    first = asked(fresh().steps(), known, machine)
    count = machine.measured
    assert asked(fresh().steps(), known, machine) == first
    assert machine.measured == count


def test_a_search_ends_when_the_time_is_over() -> None:
    """It ranks what it has seen by then."""
    machine = Machine(np.random.default_rng(1))
    shipped = Candidate("exported", 1, machine.cores, 1)
    search = Search(
        machine.grid(), shipped, machine.demands(is_tight=False), machine.cores,
        is_late=lambda _: machine.measured >= 4,
    )  # fmt: skip
    run(search.steps(), machine)
    assert machine.measured == 4
    assert search.finalists
    assert search.untried()


class _Damaging(Machine):
    """A machine on which one variant has other responses."""

    def measure(self, wanted: ToMeasure) -> Measured:
        """As another machine, but for the quality."""
        found = super().measure(wanted)
        is_damaged = wanted.candidate.variant == "int8"
        return dataclasses.replace(found, quality=0.5) if is_damaged else found


def test_a_variant_that_changes_responses_is_tried_once() -> None:
    """Whatever its speed it is not chosen, and no other settings of it are measured."""
    machine = _Damaging(np.random.default_rng(3))
    machine.variants = {"exported": 1.0, "int8": 0.1}
    search = searched(machine, machine.demands(is_tight=False))
    assert [one.variant for one in search.seen].count("int8") == 1
    assert all(one.candidate.variant == "exported" for one in search.finalists)
    assert any("50.0%" in reason for reason in search.ruled_out.values())


def test_memory_rules_out_what_needs_more() -> None:
    """As many workers as were too large, and more, are not started."""
    machine = Machine(np.random.default_rng(5))
    machine.cores, machine.variants = 16, {"exported": 1.0}
    limit = 5 * machine.memory_mb
    demands = dataclasses.replace(machine.demands(is_tight=False), memory_mb=limit)
    search = searched(machine, demands)
    assert all(one.memory_mb <= limit for one in search.finalists)
    assert search.ruled_out
    assert all(one.workers > 5 for one in search.ruled_out)


def test_a_hopeless_candidate_is_told_by_half_of_the_best_score() -> None:
    """A first look is given the score below which it ends; a second look, and the shipped, none."""
    machine = Machine(np.random.default_rng(2))
    shipped = Candidate("exported", 1, machine.cores, 1)
    search = Search(machine.grid(), shipped, machine.demands(is_tight=False), machine.cores)
    wanted = asked(search.steps(), {}, machine)
    assert wanted[0] == ToMeasure(shipped, 1, 0.0)
    assert all(one.least_score > 0 for one in wanted[1:] if one.slices == 1)
    assert all(one.least_score == 0 for one in wanted if one.slices > 1)


def figures(rps: float, p99_ms: float, memory_mb: float = 100) -> Measured:
    """A measurement of one slice."""
    only = Candidate("exported", 1, 1, 1)
    return Measured(only, (LoadSlice(1.0, round(rps), 0, p99_ms / 2, p99_ms),), memory_mb)


def test_the_front_has_what_none_beats_in_both() -> None:
    """By answers a second, ascending."""
    best = [figures(100, 1), figures(300, 5), figures(500, 20)]
    worse = [figures(90, 2), figures(300, 6), figures(400, 30)]
    assert front([*worse, *best]) == best


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(100, 30), "p99"),
        (figures(100, 5, memory_mb=600), "memory"),
        (dataclasses.replace(figures(100, 5), quality=0.9), "responses"),
        (dataclasses.replace(figures(100, 5), fault="it does not load"), "does not load"),
        (Measured(Candidate("exported", 1, 1, 1), (LoadSlice(1.0, 90, 10, 1, 2),)), "failed"),
    ],
)
def test_each_limit_is_an_objection_of_its_own(found: Measured, words: str) -> None:
    """And what keeps all limits has none."""
    demands = Demands(p99_ms=20, memory_mb=500)
    assert words in demands.objection(found)
    assert demands.objection(figures(100, 5)) == ""
    assert demands.ranked([found, figures(1, 19)])[0].rps == 1
