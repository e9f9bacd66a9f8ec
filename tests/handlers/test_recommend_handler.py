"""The recommender's handler: behaviour in, titles out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marship.errors import LoadError
from recommenders import ITEMS, pack_neighbours, pack_recommender
from workers import Worker, load_module


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recommender."""
    return pack_recommender(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def recommender(archive: Path, worker: Callable[[Path, type], Worker]) -> Worker:
    """A worker of that recommender."""
    return worker(archive, load_module("recommend_handler").RecommendHandler)


def ask(worker: Worker, **request: Any) -> Any:
    """One request's parsed answer."""
    (answer,) = worker({"body": json.dumps(request).encode()}, content_type="application/json")
    return answer.json()


def items(answer: Any) -> list[int]:
    """The recommended items, best first."""
    return [row["item"] for row in answer["items"]]


def test_the_best_unseen_items_come_first(recommender: Worker) -> None:
    """The answer has k items by falling score with their titles, and none of the history."""
    answer = ask(recommender, history=[6, 2], k=3)
    assert answer == {
        "items": [
            {"item": 5, "title": "Film 5", "score": 50.0},
            {"item": 4, "title": "Film 4", "score": 40.0},
            {"item": 3, "title": "Film 3", "score": 30.0},
        ]
    }


def test_seen_items_come_back_when_requested(recommender: Worker) -> None:
    """include_seen puts the history's items back among the answers."""
    assert items(ask(recommender, history=[6, 2], k=2, include_seen=True)) == [6, 5]


def test_k_is_ten_and_never_more_than_there_is(recommender: Worker) -> None:
    """Without k all six items but the seen one come, since there are fewer than ten."""
    assert items(ask(recommender, history=[1])) == [6, 5, 4, 3, 2]
    assert items(ask(recommender, history=[1], k=99, include_seen=True)) == [6, 5, 4, 3, 2, 1]


def test_a_user_who_has_seen_everything_gets_an_empty_list(recommender: Worker) -> None:
    """Nothing is left to recommend, and that is no error."""
    assert ask(recommender, history=[1, 2, 3, 4, 5, 6]) == {"items": []}


def test_ratings_reach_the_model(recommender: Worker) -> None:
    """Ratings are aligned with the history; without them they are 0, unknown."""
    plain = ask(recommender, history=[1, 2], k=1)["items"][0]["score"]
    rated = ask(recommender, history=[1, 2], ratings=[3, 4.5], k=1)["items"][0]["score"]
    assert (plain, rated) == (60.0, 67.5)


def test_a_long_history_is_cut_to_its_end_and_all_of_it_counts_as_seen(
    recommender: Worker,
) -> None:
    """The model takes the last four events; items before them are still left out of the answer."""
    answer = ask(recommender, history=[6, 5, 4, 3, 2], ratings=[9, 1, 1, 1, 1])
    assert answer["items"] == [{"item": 1, "title": "Film 1", "score": 14.0}]


def test_histories_of_different_lengths_predict_together_as_alone(recommender: Worker) -> None:
    """A batch of lengths 1 to 4 gives each request what it gets by itself."""
    requests = [{"history": list(range(1, n + 1)), "ratings": [n] * n} for n in range(1, 5)]
    alone = [ask(recommender, **request) for request in requests]
    rows = [{"body": json.dumps(request).encode()} for request in requests]
    together = [answer.json() for answer in recommender(*rows)]
    assert together == alone


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender in which each event speaks for some items and against others."""
    return pack_neighbours(tmp_path_factory.mktemp("neighbours"))


def logs(worker: Worker, left_out: list[int], **request: Any) -> dict[int, float]:
    """Logarithmic probability of each item that is not left out, from a response's scores."""
    found = ask(worker, **{**request, "k": 99, "include_seen": True, "explain": False})["items"]
    scores = {row["item"]: row["score"] for row in found if row["item"] not in left_out}
    total = math.log(sum(map(math.exp, scores.values())))
    return {item: score - total for item, score in scores.items()}


@pytest.mark.parametrize("seed", range(12))
def test_explanations_are_what_leaving_events_out_changes(
    neighbours: Path, worker: Callable[[Path, type], Worker], seed: int
) -> None:
    """Requests without each event say the same, for histories short, long, rated and repeating."""
    recommender = worker(neighbours, load_module("recommend_handler").RecommendHandler)
    draw = np.random.default_rng(seed)
    events, include = int(draw.integers(2, 8)), bool(seed % 2)
    request: dict[str, Any] = {"history": draw.integers(1, ITEMS + 1, events).tolist()}
    if seed % 3:
        request["ratings"] = draw.integers(1, 6, events).tolist()
    left_out = [] if include else request["history"]
    whole = logs(recommender, left_out, **request)
    without = [
        logs(
            recommender,
            left_out,
            **{name: [*column[:place], *column[place + 1 :]] for name, column in request.items()},
        )
        for place in range(events)
    ]
    found = ask(recommender, **request, include_seen=include, explain=True)["items"]
    for row in found:
        lower = [whole[row["item"]] - others[row["item"]] for others in without]
        assert len(row["because"]) == min(2, sum(value > 0 for value in lower))
        most = sorted(lower, reverse=True)
        for reason, value in zip(row["because"], most, strict=False):
            assert reason["importance"] == pytest.approx(value, abs=5e-4)
            assert lower[reason["event"]] == pytest.approx(value, abs=5e-4)
            assert reason["item"] == request["history"][reason["event"]]
            assert reason["title"] == f"Film {reason['item']}"
    plain = ask(recommender, **request, include_seen=include)["items"]
    assert plain == [{k: v for k, v in row.items() if k != "because"} for row in found]


@pytest.mark.parametrize("seed", range(6))
def test_scores_that_overflow_are_not_recommended(
    neighbours: Path, worker: Callable[[Path, type], Worker], seed: int
) -> None:
    """What is recommended has numbers, also without the event that makes others overflow."""
    recommender = worker(neighbours, load_module("recommend_handler").RecommendHandler)
    draw = np.random.default_rng(seed)
    history = draw.integers(1, ITEMS + 1, 4).tolist()
    ratings = (3.4e38 * draw.choice([-1, 1], 4)).tolist()
    found = ask(recommender, history=history, ratings=ratings, include_seen=True, explain=True)
    for row in found["items"]:
        assert isinstance(row["score"], float)
        assert all(reason["importance"] > 0 for reason in row["because"])


def test_one_event_explains_nothing(recommender: Worker) -> None:
    """There is nothing to leave out, and nothing to compare an empty history with."""
    (row,) = ask(recommender, history=[1], k=1, explain=True)["items"]
    assert row == {"item": 6, "title": "Film 6", "score": 60.0, "because": []}


def test_explanations_batch_with_others(
    neighbours: Path, worker: Callable[[Path, type], Worker]
) -> None:
    """Requests with and without explanations get in one batch what they get alone."""
    recommender = worker(neighbours, load_module("recommend_handler").RecommendHandler)
    requests = [
        {"history": [1 + n % 6, 2, 3][: 1 + n % 3], "explain": n % 2 == 0} for n in range(8)
    ]
    alone = [ask(recommender, **request) for request in requests]
    rows = [{"body": json.dumps(request).encode()} for request in requests]
    assert [answer.json() for answer in recommender(*rows)] == alone


BAD = {
    "no history": ({"k": 3}, "with history"),
    "empty": ({"history": []}, "at least one"),
    "text": ({"history": ["1"]}, "list of item numbers"),
    "truth": ({"history": [True]}, "list of item numbers"),
    "unknown": ({"history": [1, 999]}, "999 .1 unknown of 2"),
    "padding": ({"history": [0]}, "got 0"),
    "huge": ({"history": [10**30]}, "must"),
    "k 0": ({"history": [1], "k": 0}, "from 1, got 0"),
    "k text": ({"history": [1], "k": "3"}, "'3'"),
    "k truth": ({"history": [1], "k": True}, "True"),
    "ratings short": ({"history": [1, 2], "ratings": [1]}, "as long as history, 2"),
    "ratings text": ({"history": [1], "ratings": ["5"]}, "must hold numbers"),
    "times": ({"history": [1], "times": 5}, "times must be a list"),
    "explain": ({"history": [1], "explain": "yes"}, "explain must be true or false"),
    "include": ({"history": [1], "include_seen": 1}, "true or false"),
    "unknown key": ({"history": [1], "top": 3}, "no keys but"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_a_400_that_says_why(recommender: Worker, case: str) -> None:
    """Each bad request gets a code, a message and a request of the right form; others answers."""
    request, words = BAD[case]
    good = {"body": b'{"history": [1], "k": 1}'}
    bad_answer, good_answer = recommender({"body": json.dumps(request).encode()}, good)
    assert bad_answer.status == 400
    assert good_answer.status == 200
    answer = bad_answer.json()
    assert words.split(".")[0] in answer["message"]
    assert answer["expects"]["history"]


def test_titles_must_be_in_the_archive(
    archive: Path, worker: Callable[[Path, type], Worker]
) -> None:
    """A worker without items.json refuses to load."""
    kind = load_module("recommend_handler").RecommendHandler

    class Untitled(kind):  # type: ignore[misc, valid-type]
        def prepare(self) -> None:
            """Remove the titles first."""
            (self.folder / "items.json").unlink()
            super().prepare()

    with pytest.raises(LoadError, match=r"items\.json must give a title"):
        worker(archive, Untitled)
