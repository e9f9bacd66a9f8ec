"""Whether a candidate's responses are those of the shipped settings."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from marship.contract import Contract, TensorSpec
from marship.contract.tolerance import Tolerance
from marship.errors import UsageError
from marship.operate.tune import answers
from marship.serving.formats.golden import GoldenRequest


def contract(atol: float) -> Contract:
    """A contract with this tolerance."""
    spec = TensorSpec("x", "float32", ("batch", 3))
    return Contract((spec,), (spec,), ("m.onnx",), "", 20, tolerance=Tolerance(atol, 0.0))


def response(value: object, kind: str = "application/json") -> GoldenRequest:
    """A request with this response."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return GoldenRequest("a.json", "application/json", b"{}", kind, body)


def npy(*rows: list[float]) -> bytes:
    """An array as npy."""
    stream = io.BytesIO()
    np.save(stream, np.array(rows, np.float32))
    return stream.getvalue()


SCORES = {"output": [[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]}


@pytest.mark.parametrize(
    ("got", "atol", "share"),
    [
        (SCORES, 1e-4, 1.0),
        ({"output": [[0.11, 0.59, 0.3], [0.5, 0.2, 0.3]]}, 0.05, 1.0),
        ({"output": [[0.11, 0.59, 0.3], [0.5, 0.2, 0.3]]}, 1e-4, 0.0),
        ({"output": [[0.1, 0.6, 0.3], [0.39, 0.2, 0.41]]}, 0.2, 0.0),  # another top class
        ({"output": [[0.1, 0.6, 0.3]]}, 1.0, 0.0),
        ({"other": []}, 1.0, 0.0),
    ],
)
def test_a_response_is_the_same_within_the_tolerance_and_with_its_top_class(
    got: object, atol: float, share: float
) -> None:
    """The wider tolerance of both archives counts for scores."""
    contracts = contract(1e-6), contract(atol)
    assert answers.unchanged([response(SCORES)], [response(got)], *contracts) == share


NAMED = [{"label": "cat", "score": 0.61}, {"label": "dog", "score": 0.39}]


@pytest.mark.parametrize(
    ("reference", "got", "share"),
    [
        ({"output": [[1.5], [2.5]]}, {"output": [[1.51], [2.5]]}, 0.0),
        ({"price": 31.25}, {"price": 31.26}, 0.0),
        ([{"price": 1.5}, {"price": 2.5}], [{"price": 1.51}, {"price": 2.5}], 0.0),
        ({**SCORES, "age": 31.25}, {**SCORES, "age": 31.26}, 0.0),
        (npy([1.5], [2.5]), npy([1.51], [2.5]), 0.0),
        (npy([0.5, -2.5]), npy([0.51, -2.5]), 0.0),  # as an embedding
        ({"output": [[0.6, 0.8]]}, {"output": [[0.61, 0.79]]}, 0.0),
        (npy([0.6, 0.4]), npy([0.61, 0.39]), 1.0),
        (NAMED, [{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.4}], 1.0),
        (
            [{"title": "a", "score": 3.61}, {"title": "b", "score": 2.39}],
            [{"title": "a", "score": 3.6}, {"title": "b", "score": 2.4}],
            1.0,
        ),
        (
            [{"title": "a", "price": 3.61}, {"title": "b", "price": 2.39}],
            [{"title": "a", "price": 3.6}, {"title": "b", "price": 2.4}],
            0.0,
        ),
        (
            [{"text": "a", "start": 0.5, "end": 0.9}, {"text": "b", "start": 0.9, "end": 1.5}],
            [{"text": "a", "start": 0.5, "end": 0.91}, {"text": "b", "start": 0.9, "end": 1.5}],
            0.0,
        ),
        (NAMED, [{"label": "dog", "score": 0.61}, {"label": "cat", "score": 0.39}], 0.0),
    ],
)
def test_only_scores_may_be_off_by_what_a_variant_is_off_by(
    reference: object, got: object, share: float
) -> None:
    """Prices, embeddings and times are what is asked for: the archive's own tolerance holds."""
    kind = "application/x-npy" if isinstance(reference, bytes) else "application/json"
    pair = [response(reference, kind)], [response(got, kind)]
    assert answers.unchanged(*pair, contract(1e-4), contract(0.05)) == share


def test_arrays_are_compared_as_json_is() -> None:
    """By value, and by the largest of each row."""
    kind = "application/x-npy"
    reference = response(npy([0.1, 0.9], [0.8, 0.2]), kind)
    near = response(npy([0.12, 0.88], [0.8, 0.2]), kind)
    turned = response(npy([0.1, 0.9], [0.49, 0.51]), kind)
    wide = contract(0.5), contract(0.5)
    assert answers.unchanged([reference], [near], *wide) == 1.0
    assert answers.unchanged([reference], [turned], *wide) == 0.0


def test_texts_must_be_equal() -> None:
    """A title in another place of a list is another response; half of two is a half."""
    first = {"items": [{"title": "A", "score": 0.91}, {"title": "B", "score": 0.9}]}
    turned = {"items": [{"title": "B", "score": 0.91}, {"title": "A", "score": 0.9}]}
    pair = [response(first), response(first)]
    wide = contract(0.5), contract(0.5)
    assert answers.unchanged(pair, [response(first), response(turned)], *wide) == 0.5


def test_requests_are_read_from_a_folder(tmp_path: Path) -> None:
    """With the media types of their names; an empty folder is an error that names tune's flag."""
    with pytest.raises(UsageError, match=r"must hold files .* Name another .* --requests\.$"):
        answers.read(tmp_path)
    for n in range(300):
        (tmp_path / f"{n:03}.json").write_text(f"[{n}]")
    found = answers.read(tmp_path)
    assert len(found) == answers.MOST_REQUESTS
    assert (found[0].body, found[-1].body) == (b"[0]", b"[299]")
    assert {one.content_type for one in found} == {"application/json"}
