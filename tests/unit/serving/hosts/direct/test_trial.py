"""Who takes part in a trial, how long it lasts, and what of two responses is a difference."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marship.errors import ServerError
from marship.serving.formats import codec
from marship.serving.hosts.direct import routes
from marship.serving.hosts.direct.likeness import compare
from marship.serving.hosts.direct.trial import (
    LEASE_S,
    TOOK_S,
    RunningTrials,
    TrialFigures,
    TrialOrder,
    VersionResponse,
    added,
)

ORDER = TrialOrder(
    owner="me", model="a", default="1", version="2", share=0.5, gives_new=True, absolute=1e-3
)
JSON = "application/json"


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_lets_no_client_go(value: bytes, one: float, other: float) -> None:
    """By its header a client is decided for once, in whatever process, and only joins."""
    small, large = sorted((one, other))
    sticky = replace(ORDER, sticky_header="X-User")
    headers = {b"x-user": value}
    decided = [replace(sticky, share=share).takes(headers) for share in (small, small, large, 1.0)]
    assert decided == sorted(decided)
    assert decided[0] == decided[1]
    assert decided[3]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_headers_are_spread_by_the_share(share: float) -> None:
    """Of 4,000 clients about as many take part, others for another version."""
    sticky = replace(ORDER, sticky_header="x-user", share=share)
    users = [{b"x-user": b"%d" % n} for n in range(4000)]
    taken = [sticky.takes(each) for each in users]
    assert abs(sum(taken) / 4000 - share) < 5 * math.sqrt(share * (1 - share) / 4000)
    assert [replace(sticky, version="3").takes(each) for each in users] != taken


def test_without_the_header_chance_decides() -> None:
    """Also where it is empty."""
    sticky = replace(ORDER, sticky_header="x-user")
    for headers in ({}, {b"x-user": b""}):
        assert {sticky.takes(headers) for _ in range(200)} == {True, False}


PATHS = st.sampled_from(
    [
        *("/predictions/{}", "/explanations/{}", "/v1/models/{}:predict", "/v1/models/{}"),
        *("/v2/models/{}", "/v2/models/{}/infer", "/v2/models/{}/ready", "/v2/models/{}/explain"),
        *("/v1/models/{}:explain", "/v2/models/{}:explain"),
    ]
)


@settings(deadline=None)
@given(PATHS, st.sampled_from(["m", "a%20b", "a.b-c"]), st.sampled_from(["1", "2.0", "a b"]))
def test_a_path_with_a_version_is_the_same_route(path: str, model: str, version: str) -> None:
    """Of each path that names a model alone."""
    plain = path.format(model).encode()
    found, named = routes.find(plain), routes.find(routes.versioned(plain, version))
    assert found is not None
    assert named == replace(found, version=version)


def test_a_trial_ends_where_nobody_renews_it() -> None:
    """After the lease, and not before; whoever begins and ends one is told."""
    changes: list[int] = []
    trials = RunningTrials(lambda: changes.append(1))
    trials.renew(ORDER, 100.0, ("1", "2"))
    trials.renew(ORDER, 105.0, ("1", "2"))
    trials.expire(105.0 + LEASE_S)
    assert trials.of("a") is not None
    trials.expire(105.1 + LEASE_S)
    assert trials.of("a") is None
    assert len(changes) == 2


def test_a_second_trial_of_a_model_is_refused() -> None:
    """In one line, and the first one goes on; its own command may end it."""
    trials = RunningTrials(lambda: None)
    trials.renew(ORDER, 0.0, ("1", "2", "3"))
    other = replace(ORDER, owner="you", version="3")
    for share in (0.5, 0.0):
        with pytest.raises(ServerError, match=r"one trial at a time, got one of 2 that runs"):
            trials.renew(replace(other, share=share), 0.0, ("1", "2", "3"))
    trials.renew(replace(other, model="b"), 0.0, ("1", "2", "3"))
    trials.renew(replace(ORDER, share=0.0), 0.0, ("1", "2", "3"))
    trials.renew(other, 0.0, ("1", "2", "3"))
    assert {state.order.version for state in trials.states()} == {"3"}


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        (("2", "1"), "got 2 as the default"),
        (("1",), "registered beside the default while it is tried, got 1"),
        ((), "got no such model"),
    ],
)
def test_a_trial_ends_with_its_versions(serving: tuple[str, ...], message: str) -> None:
    """When the engine is seen to have others, and when the command comes first."""
    trials = RunningTrials(lambda: None)
    trials.renew(ORDER, 0.0, ("1", "2"))
    trials.follow(lambda _model: serving)
    assert trials.of("a") is None
    trials.renew(ORDER, 0.0, ("1", "2"))
    with pytest.raises(ServerError, match=message):
        trials.renew(ORDER, 0.0, serving)
    assert trials.of("a") is None


def test_another_share_begins_its_figures_anew() -> None:
    """They have another source, so that nobody adds them to the former ones."""
    trials = RunningTrials(lambda: None)
    first = trials.renew(ORDER, 0.0, ("1", "2"))
    first.taken = 5
    second = trials.renew(replace(ORDER, share=1.0), 0.0, ("1", "2"))
    assert (second.taken, second.source == first.source) == (0, False)


def test_an_order_of_another_marship_is_refused() -> None:
    """With what is wrong, and no exception, which requests would meet later."""
    right = {name: getattr(ORDER, name) for name in ORDER.__slots__}
    for facts, word in (
        ({"model": "a"}, "owner"),
        ({**right, "more": 1}, "more"),
        ({**right, "share": 2.0}, "share"),
        ({**right, "sticky_header": "Größe"}, "header"),
    ):
        told = RunningTrials(lambda: None).reply(facts, 0.0, lambda _model: ("1", "2"))
        assert word in told["refused"]


def answer(body: object, status: int = 200, kind: str = JSON, took_s: float = 0.01) -> Any:
    """A version's response."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return VersionResponse(status, took_s, kind, data)


def test_an_error_is_a_fault_or_a_refusal_of_what_the_other_accepts() -> None:
    """What both refuse is the client's mistake; times are those of what was accepted."""
    figures = TrialFigures()
    figures.note(answer(1), answer(1, took_s=0.02))
    figures.note(answer(1), answer(1, 503))
    figures.note(answer(1), answer(1, 400))
    figures.note(answer(1, 400), answer(1, 400))
    figures.note(answer(1, 500), None)
    assert (figures.default.requests, figures.default.errors) == (5, 1)
    assert (figures.new.requests, figures.new.errors) == (4, 2)
    place = next(i for i, bound in enumerate(TOOK_S) if bound >= 0.02)
    assert figures.new.took[place] == 1
    twice = added([figures, TrialFigures.from_json(json.loads(json.dumps(figures.to_json())))])
    assert (twice.new.errors, sum(twice.default.took)) == (4, 2 * sum(figures.default.took))


NUMBERS = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=5), st.floats(0, 2e-3), st.data())
def test_numbers_within_the_tolerance_are_alike(
    values: list[float], gap: float, data: st.DataObject
) -> None:
    """In JSON and in npy; beyond it the place and the distance are told, and no value."""
    at = data.draw(st.integers(0, len(values) - 1))
    moved = [*values]
    moved[at] += gap
    real = abs(moved[at] - values[at])
    for kind in (JSON, codec.NPY_TYPE):
        bodies = [
            codec.write_npy(np.array(each)) if kind == codec.NPY_TYPE else {"y": each}
            for each in (moved, values)
        ]
        found = compare(*(answer(each, kind=kind) for each in bodies), ORDER)
        assert found.differs == (real > ORDER.absolute)
        if found.differs:
            assert found.gap == pytest.approx(real)
            assert found.place.endswith(f"is off by {real:.4g}")


@pytest.mark.parametrize(
    ("new", "default", "place"),
    [
        (answer(1, 500), answer(1), "status 500 in place of 200"),
        (answer("x"), answer("y"), "the response is another value"),
        (answer({"a": [1]}), answer({"a": [1, 2]}), "a is another value"),
        (answer({"a": 1.0}), answer({"b": 1.0}), "the response is another value"),
        (answer({"a": None}), answer({"a": 1.0}), "another value"),
        (answer(1.0, kind="text/plain"), answer(1.0), "another media type"),
    ],
)
def test_what_else_differs_is_told_by_its_place(new: Any, default: Any, place: str) -> None:
    """Without what the responses hold."""
    found = compare(new, default, ORDER)
    assert (found.differs, found.gap) == (True, 0.0)
    assert place in found.place


@pytest.mark.parametrize(
    ("new", "default", "differs"),
    [
        (answer(b"\1", kind="application/x-own"), answer(b"\2", kind="application/x-own"), None),
        (answer(b"\1", kind="application/x-own"), answer(b"\1", kind="application/x-own"), False),
        (answer(None), answer(1), None),
        (answer({"message": "id 1"}, 400), answer({"message": "id 2"}, 400), False),
        (
            answer({"model_name": "a", "model_version": "2", "outputs": [1]}),
            answer({"model_name": "a", "model_version": "1", "outputs": [1]}),
            False,
        ),
    ],
)
def test_what_is_no_difference_is_none(new: Any, default: Any, differs: bool | None) -> None:
    """Bytes of other types may differ each time, errors have ids, and versions their numbers."""
    assert compare(new, default, ORDER).differs is differs
