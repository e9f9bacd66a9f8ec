"""How lists are judged: ranks, coverage, diversity, popularity, and the baselines."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def person(movielens: ModuleType) -> Any:
    """Makes the history of items rated one after the other."""

    def history(*items: int) -> object:
        return movielens.History(
            np.array(items), np.ones(len(items), np.float32), np.arange(1, len(items) + 1)
        )

    return history


def judged(ranking: ModuleType, scores: list[float], wanted: int, seen: list[int]) -> list[float]:
    """HR@10 and NDCG@10 of one user."""
    hidden = np.zeros((1, len(scores)), bool)
    hidden[0, [0, *seen]] = True
    found = ranking.judge(
        {"scores": np.array([scores])}, {"item": np.array([wanted]), "seen": hidden}
    )
    return [found["hr@10"], found["ndcg@10"]]


def test_the_judge_counts_ranks_among_the_unseen(ranking: ModuleType) -> None:
    """Rank 1 gains 1, rank 3 a half, rank 11 nothing; seen items do not count; ties do."""
    falling = [0.0, *np.linspace(1, 0.1, 20)]
    assert judged(ranking, falling, 1, []) == [1, 1]
    assert judged(ranking, falling, 3, []) == [1, 0.5]
    assert judged(ranking, falling, 11, []) == [0, 0]
    assert judged(ranking, falling, 11, list(range(1, 11))) == [1, 1]
    assert judged(ranking, [1.0] * 21, 5, []) == [0, 0]
    assert judged(ranking, [float("nan")] * 21, 5, []) == [0, 0]


def test_popularity_and_ease_know_what_goes_together(ranking: ModuleType, person: Any) -> None:
    """Popularity ranks by count; EASE finds the item that always comes with the one known."""
    known = [person(1, 2)] * 4 + [person(3, 4)] * 2 + [person(2, 5)] * 5

    def found(scorer: Any, *items: int) -> float:
        asked = person(*items)
        scores = {"scores": scorer([asked[:-1]])}
        value: float = ranking.judge(scores, ranking.targets_of([asked]))["ndcg@10"]
        return value

    assert found(ranking.ease(known, penalty=0.5), 3, 4) == 1
    assert found(ranking.popularity(known), 1, 2) == 1
    assert found(ranking.popularity(known), 3, 4) < 1


def test_lists_are_told_apart_by_what_people_see(
    ranking: ModuleType, movielens: ModuleType, person: Any
) -> None:
    """The same ten for everybody cover ten items; own lists cover more, and vary as genres do."""
    histories = [person(*range(first, first + 6)) for first in range(1, 301, 30)]
    chosen = [person(int(history.items[-1])) for history in histories]
    train = [h[:-1] for h in histories] + chosen + [person(*range(1001, 1011))] * 9
    few = {1: [history[-2:] for history in histories]}
    split = movielens.Split(train=train, judged=histories, few=few)
    alike = np.tile(np.array([1.0, 0, 0]), (movielens.ITEMS, 1))
    mixed = np.eye(3)[np.arange(movielens.ITEMS) % 3]

    def next_ones(asked: list[Any]) -> Any:
        scores = np.zeros((len(asked), movielens.ITEMS))
        for row, history in zip(scores, asked, strict=True):
            row[history.items[-1] + 1 : history.items[-1] + 11] = np.arange(10, 0, -1)
        return scores

    own = ranking.measure(next_ones, split, mixed)
    assert own["hr@10"] == own["ndcg@10"] == own["ndcg@10 of 1"] == 1
    assert own["coverage"] == pytest.approx(100 / 1682)
    # of the 45 pairs of ten items in turn of three genres, 12 are of one genre
    assert own["diversity"] == pytest.approx(1 - 12 / 45)
    assert own["popularity"] == pytest.approx(0.1)  # of the ten, one was rated, once
    assert ranking.measure(next_ones, split, alike)["diversity"] == pytest.approx(0)

    nobody = movielens.Split(train=train, judged=histories, few={1: []})
    assert ranking.measure(next_ones, nobody, mixed).items() == own.items() - {
        ("ndcg@10 of 1", 1.0)
    }

    same = ranking.measure(ranking.popularity(train), split, mixed)
    assert same["coverage"] == pytest.approx(10 / 1682)
    assert same["hr@10"] == 0
    assert same["popularity"] == pytest.approx(9)
