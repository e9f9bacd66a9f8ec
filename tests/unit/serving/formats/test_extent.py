"""How large a response will be is known before it is written, and before the model is run."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marship.contract import Array, Contract, TensorSpec
from marship.engines.torchserve import properties
from marship.engines.torchserve.config import PACKAGED
from marship.errors import TooLargeError
from marship.serving.formats import codec, encoding, extent, kserve
from marship.serving.formats.codec import BodyFormat, Message

DTYPES = [dtype for dtype in kserve.DTYPES.values() if dtype != "str"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
NUMBERS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
TEXTS = hnp.arrays(object, SHAPES, elements=st.text(max_size=5), fill=st.nothing())
ARRAYS = st.one_of(NUMBERS, TEXTS)
LIMIT = 1 << 30


def size(array: Array, form: BodyFormat, *, raw: bool) -> tuple[int, int]:
    """The least size that is told of an answer, and its size."""
    message = Message({}, form, kserve.OutputRequest(all_binary=raw))
    told = 0
    while True:  # the largest that `check_size` lets pass is the least that it tells
        try:
            texts = extent.text_bytes(array)
            codec.check_size(message, extent.of({"y": array}), told, texts)
        except TooLargeError as error:
            told = int(str(error).split("got at least ")[1].split(".")[0])
        else:
            return told, len(codec.encode({"y": array}, message, "m", "1").body)


@settings(max_examples=300, deadline=None)
@given(array=ARRAYS, form=st.sampled_from(BodyFormat), raw=st.booleans())
def test_no_response_is_smaller_than_the_least_size(
    array: Array, form: BodyFormat, raw: bool
) -> None:
    """Of any type, shape and form: what is refused by its least size is too large in fact."""
    if form is BodyFormat.NPY and array.dtype.hasobject:
        return
    if form is BodyFormat.INSTANCES and not array.ndim:
        return  # it is no list of predictions
    told, written = size(array, form, raw=raw)
    assert told <= written


@pytest.mark.parametrize("is_computed", [False, True])
def test_outputs_that_were_not_asked_for_do_not_count(is_computed: bool) -> None:
    """Whether the sizes follow from the contract or from what the model returned."""
    small, large = np.zeros((1, 1), np.float32), np.full((1, 9), "long" * 99)
    asks = kserve.OutputRequest(names=("small",))
    message = Message({"x": np.zeros(1, np.uint8)}, BodyFormat.KSERVE, asks)
    if is_computed:
        body = codec.encode({"large": large, "small": small}, message, "m", "1", 200).body
        assert [each["name"] for each in orjson.loads(body)["outputs"]] == ["small"]
    else:
        model = contract(WIDE, TensorSpec("small", "float32", ("n", 1)))
        codec.check_size(message, extent.stated(model, message.inputs), 200)


@settings(max_examples=300, deadline=None)
@given(array=ARRAYS)
def test_no_json_is_larger_than_the_most_size(array: Array) -> None:
    """So what fits by it is written in one go."""
    assert len(encoding.dump(array, LIMIT)) <= max(extent.most_json_bytes(array), 24)


@settings(max_examples=200, deadline=None)
@given(array=ARRAYS, piece=st.integers(1, 9))
def test_pieces_are_the_json_of_the_whole(array: Array, piece: int) -> None:
    """Cut anywhere, at any depth, and joined again; one byte less is refused."""
    whole = orjson.dumps(encoding.plain(array), option=orjson.OPT_SERIALIZE_NUMPY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "CHUNK_VALUES", piece)
        patch.setattr(extent, "most_json_bytes", lambda _: LIMIT)
        assert encoding.dump(array, len(whole)) == whole
        with pytest.raises(TooLargeError, match=f"at most {len(whole) - 1} bytes"):
            encoding.dump(array, len(whole) - 1)


def test_writing_ends_with_the_piece_that_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long values that the least size does not foresee are not written to their end."""
    written: list[int] = []
    dumps = orjson.dumps

    def counted(value: Any, **options: Any) -> bytes:
        text = dumps(value, **options)
        written.append(len(text))
        return text

    monkeypatch.setattr(encoding.orjson, "dumps", counted)
    array = np.full((100, 100_000), -1.2345678901234567e-300)
    limit = array.size * 4 + 1000
    with pytest.raises(TooLargeError):
        codec.encode({"y": array}, Message({}, BodyFormat.BARE), "m", "1", limit)
    assert max(written) < 24 * 2 * encoding.CHUNK_VALUES
    assert sum(written) < limit + 24 * 2 * encoding.CHUNK_VALUES


def contract(*outputs: TensorSpec, bounds: Any = None) -> Contract:
    """A contract with these outputs."""
    given = (TensorSpec("x", "uint8", ("n",)),)
    return Contract(given, outputs, ("m",), "", 20, "n", bounds or {})


WIDE = TensorSpec("y", "float32", ("n", 1000))


def test_what_shapes_say_is_known_before_the_run() -> None:
    """Axes of the request and fixed ones; an output with an axis of its own is not foreseen."""
    model = contract(WIDE, TensorSpec("z", "int64", ("n", "found")))
    assert extent.stated(model, {"x": np.zeros(7, np.uint8)}) == {"y": ("float32", [7, 1000])}


@pytest.mark.parametrize(
    ("bounds", "bound"),
    [({}, (1, 4194)), ({"n": (2, None)}, (2, 4194)), ({"n": (1, 9)}, (1, 9))],
)
def test_a_batch_axis_without_a_bound_gets_one(bounds: Any, bound: tuple[int, int]) -> None:
    """As many rows as a response holds; what is stated stays."""
    assert extent.bounded(contract(WIDE, bounds=bounds)).bounds["n"] == bound


def test_a_row_larger_than_a_response_leaves_one_row() -> None:
    """A server with a higher limit may send it."""
    model = contract(TensorSpec("y", "float32", ("n", 10**8)))
    assert extent.bounded(model).bounds["n"] == (1, 1)


def test_the_limit_as_shipped_is_the_settings() -> None:
    """What packing reckons with is what config.properties says."""
    assert int(properties.read(PACKAGED)["max_response_size"]) == extent.SHIPPED_BYTES


def test_a_kserve_response_has_the_same_values_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large data stands in the JSON as it would if written whole."""
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    monkeypatch.setattr(encoding, "CHUNK_VALUES", 64)
    message = Message({}, BodyFormat.KSERVE)
    whole = codec.encode({"y": array}, message, "m", "1").body
    cut = codec.encode({"y": array}, message, "m", "1", len(whole)).body
    assert json.loads(cut)["outputs"][0]["data"] == list(range(1000))
    assert cut == whole
