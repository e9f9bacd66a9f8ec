"""Who takes part in a trial, how long it lasts, and what of two responses is a difference."""

import json
import math
from bisect import bisect_left
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
from marship.serving.hosts.direct.outcome import TOOK_S, TrialFigures, VersionResponse, added
from marship.serving.hosts.direct.trial import LEASE_S, RunningTrials, TrialOrder

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
        (answer({"a": [1]}), answer({"a": [1, 2]}), "a has 1 entries in place of 2"),
        (answer({"a": 1.0}), answer({"b": 1.0}), "b is missing"),
        (answer({"a": None}), answer({"a": 1.0}), "a has another form"),
        (answer(1.0, kind="text/plain"), answer(1.0), "another media type"),
    ],
)
def test_what_else_differs_is_told_by_its_place(new: Any, default: Any, place: str) -> None:
    """Without what the responses hold."""
    found = compare(new, default, ORDER)
    assert (found.differs, found.gap) == (True, 0.0)
    assert place in found.place


def in_rows(count: int, form: str) -> tuple[Any, str]:
    """So many rows as a request or a response of a form, and its media type."""
    table = np.arange(2.0 * count).reshape(count, 2)
    if form == "npy":
        return codec.write_npy(table), codec.NPY_TYPE
    if form == "kserve":
        tensor = {"name": "y", "shape": [count, 2], "datatype": "FP64"}
        return {"model_name": "m", "outputs": [{**tensor, "data": table.ravel().tolist()}]}, JSON
    return {"list": table.tolist(), "named": {"y": table.tolist()}}[form], JSON


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    asked_as=st.sampled_from(["list", "npy"]),
    form=st.sampled_from(["list", "named", "kserve", "npy"]),
    lost=st.integers(-1, 1),
    is_fixed=st.booleans(),
)
def test_rows_that_a_new_version_loses_are_another_form(
    sizes: list[int], asked_as: str, form: str, lost: int, is_fixed: bool
) -> None:
    """Where the default version has as many as each request: not where it has its own number."""
    figures = TrialFigures()
    for size in sizes:
        request, kind = in_rows(size, asked_as)
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        count = 7 if is_fixed else size
        (want, its), (got, mine) = in_rows(count, form), in_rows(max(0, count - lost), form)
        found = compare(
            answer(got, kind=mine), answer(want, kind=its), ORDER, request=data, request_type=kind
        )
        assert found.loses_rows == (lost != 0 and not is_fixed)
        assert (
            not found.loses_rows or f"{max(0, size - lost)} rows in place of {size}" in found.place
        )
        figures.note_likeness("1", found)
    assert figures.follows_rows is not is_fixed
    assert figures.rowless == (len(sizes) if lost and not is_fixed else 0)


def test_requests_without_rows_tell_nothing_of_them() -> None:
    """Texts, pictures, and parts of several lengths."""
    for request, kind in (
        (b"text", "text/plain"),
        (b'{"a": [1], "b": [1, 2]}', JSON),
        (b"[", JSON),
    ):
        found = compare(answer([1]), answer([1, 2]), ORDER, request=request, request_type=kind)
        assert (found.follows_rows, found.loses_rows) == (None, False)


NUMBERS = st.floats(-10, 10) | st.integers(-10, 10)
VALUES = st.recursive(
    NUMBERS | st.text(max_size=3) | st.booleans(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def changed(value: Any, data: st.DataObject) -> Any:
    """Another value of the same form: numbers, texts, more keys and more elements."""
    if isinstance(value, dict):
        return {**{key: changed(part, data) for key, part in value.items()}, "more": 1}
    if isinstance(value, list):
        return [changed(part, data) for part in value] + value[:1] * data.draw(st.integers(0, 2))
    if isinstance(value, bool):
        return data.draw(st.booleans())
    return data.draw(NUMBERS) if isinstance(value, int | float) else data.draw(st.text(max_size=3))


def broken(value: Any, data: st.DataObject) -> Any:
    """The value with one part of another kind, or without a key."""
    if isinstance(value, dict):
        key = data.draw(st.sampled_from(sorted(value)))
        rest = {name: part for name, part in value.items() if name != key}
        return data.draw(st.sampled_from([rest, {**rest, key: broken(value[key], data)}]))
    if isinstance(value, list) and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], broken(value[at], data), *value[at + 1 :]]
    return {"other": 1} if not isinstance(value, str) else 1


def is_other(new: VersionResponse, default: VersionResponse) -> bool:
    """Whether a program that reads the default version's cannot read the new one's."""
    found = compare(new, default, ORDER)
    assert not (found.is_other_form and found.is_keyless)
    return found.is_other_form or found.is_keyless


@settings(deadline=None, max_examples=200)
@given(VALUES, st.data())
def test_another_form_is_told_from_other_values(value: Any, data: st.DataObject) -> None:
    """A program that reads the one can read the other, or cannot."""
    assert not is_other(answer(changed(value, data)), answer(value))
    assert is_other(answer(broken(value, data)), answer(value))


def v2(name: str, kind: str, *values: float) -> dict[str, Any]:
    """A response of KServe v2."""
    output = {"name": name, "datatype": kind, "shape": [len(values)], "data": list(values)}
    return {"model_name": "m", "model_version": "1", "outputs": [output]}


@pytest.mark.parametrize(
    ("new", "default", "expected"),
    [
        (answer(v2("y", "FP32", 1)), answer(v2("z", "FP32", 1)), True),
        (answer(v2("y", "INT64", 1)), answer(v2("y", "FP32", 1)), True),
        (answer(v2("y", "FP32", 3)), answer(v2("y", "FP32", 1)), False),
        (answer(1.0, kind="text/html"), answer(1.0), True),
        (answer(b"", kind=JSON), answer(1.0), True),
        (answer(b"<html>", kind=JSON), answer(1.0), True),
        (answer(1.0), answer(b"<html>", kind=JSON), False),
        (answer(1.0, 204), answer(1.0), True),
        (answer(1.0, 400), answer(1.0), False),  # which is an error of the new version
        (answer(1.0), answer(1.0, 400), False),
        (answer({"a": None}), answer({"a": 1.0}), True),
        (answer({"a": 1.0}), answer({"a": None}), False),
        (answer(1.0, kind="Application/JSON; charset=utf-8"), answer(1.0), False),
        (answer(b"", kind=JSON), VersionResponse(200, 0.01, JSON, None), True),
        (
            answer(codec.write_npy(np.ones((2, 3))), kind=codec.NPY_TYPE),
            answer(codec.write_npy(np.ones(3)), kind=codec.NPY_TYPE),
            True,
        ),
        (
            answer(codec.write_npy(np.ones((2, 3), "f4")), kind=codec.NPY_TYPE),
            answer(codec.write_npy(np.ones((2, 3), "f8")), kind=codec.NPY_TYPE),
            False,
        ),
    ],
)
def test_whatever_no_program_reads_is_another_form(new: Any, default: Any, expected: bool) -> None:
    """By name and type of KServe's outputs, by the media type, and by what a body holds."""
    assert is_other(new, default) == expected


def raw(name: str, *rows: list[float]) -> VersionResponse:
    """A response of KServe v2 with binary tensors."""
    values = np.array(rows, "<f4")
    facts = {
        "model_name": "m", "model_version": "1",
        "outputs": [{
            "name": name, "datatype": "FP32", "shape": list(values.shape),
            "parameters": {"binary_data_size": values.nbytes},
        }],
    }  # fmt: skip
    head = json.dumps(facts).encode()
    found = answer(head + values.tobytes(), kind="application/octet-stream")
    return replace(found, json_bytes=str(len(head)))


def test_binary_tensors_are_compared_by_value_and_form() -> None:
    """They are what KServe's own clients ask for."""
    one = raw("y", [1.0, 2.0])
    assert compare(raw("y", [1.0, 2.0]), one, ORDER).differs is False
    found = compare(raw("y", [1.0, 2.5]), one, ORDER)
    assert (found.differs, found.gap, is_other(raw("y", [1.0, 2.5]), one)) == (True, 0.5, False)
    assert is_other(raw("z", [1.0, 2.0]), one)
    assert compare(raw("y", [1.0, 2.0, 3.0, 4.0]), one, ORDER).new_lengths == (2, 4)
    assert is_other(replace(one, body=(one.body or b"")[:-3]), one)


def test_keys_count_where_the_default_versions_are_always_the_same() -> None:
    """Scores by label have the keys of each picture."""

    def figures(pairs: list[tuple[Any, Any]]) -> tuple[int, bool]:
        found = TrialFigures()
        for new, default in pairs:
            found.note_likeness("r", compare(answer(new), answer(default), ORDER))
        again = added([TrialFigures(), found, found])
        assert again.keys == found.keys
        return found.keyless, bool(found.keys)

    fixed = [({"label": "a"}, {"tag": "a"})] * 3
    varied = [({"dog": 0.5}, {"cat": 0.5}), ({"cat": 0.5}, {"dog": 0.25})]
    assert figures(fixed) == (3, True)
    assert figures(varied) == (2, False)


@pytest.mark.parametrize("status", [400, 422, 503])
def test_refusals_are_judged_where_the_other_version_was_asked(status: int) -> None:
    """One that refuses all at once is asked more than the other, and is an error of each pair."""
    found = TrialFigures()
    for pair in range(20):
        found.note(answer(1.0) if pair < 2 else None, answer(1.0, status))
    judged = 20 if status == 503 else 2
    assert (found.new.errors, found.new.judged, found.new.requests) == (judged, judged, 20)
    assert (found.default.errors, sum(found.new.took)) == (0, 0)


def test_lists_of_numbers_have_lengths_where_the_default_versions_are_fixed() -> None:
    """Ten scores where there were seven break programs; other numbers of boxes do not."""

    def unlike(pairs: list[tuple[Any, Any]]) -> tuple[int, list[int] | None]:
        found = TrialFigures()
        for new, default in pairs:
            found.note_likeness("r", compare(answer(new), answer(default), ORDER))
        return found.unlike, found.lengths

    assert unlike([([[0.5] * 10], [[0.25] * 7])] * 3) == (3, [7])
    assert unlike([([1.0, 2.0], [3.0]), ([1.0], [2.0, 4.0])]) == (2, [])
    boxes = [({"b": [[1, 2, 3, 4]] * n}, {"b": [[1, 2, 3, 5]] * m}) for n, m in ((1, 2), (3, 1))]
    assert unlike(boxes) == (0, [4])
    assert unlike([([1.0, 2.0], [1.0, 2.0]), ([1.5, 2.0], [1.0, 2.0])]) == (0, [2])


def test_requests_that_wait_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """For how long a version answers nobody; a client that leaves has waited at least so long."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trials = RunningTrials(lambda: None)

    def figures() -> TrialFigures:
        return trials.renew(ORDER, now[0], ("1", "2"))

    figures()
    trial = trials.of("a")
    assert trial is not None
    waits = [trial.begin("2"), trial.begin("2")]
    now[0] += 3
    other = trial.begin("1")
    now[0] += 1
    found = figures()
    assert (found.new.waiting, found.new.silent_s) == (2, 4.0)
    assert (found.default.waiting, found.default.silent_s) == (1, 1.0)
    other.end()
    waits[0].end()
    now[0] += 2
    found = figures()
    assert (found.new.waiting, found.new.silent_s, found.default.waiting) == (1, 2.0, 0)
    waits[0].leave()  # a stream's rest: it was answered
    waits[1].leave()
    found = figures()
    assert (found.new.requests, found.new.waiting, found.new.silent_s) == (1, 0, 0.0)
    assert sum(found.new.took[: bisect_left(TOOK_S, 5.9)]) == 0


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
