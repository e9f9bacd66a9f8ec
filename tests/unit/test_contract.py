"""marship.contract: facts that survive the way through files, and what "agree" means."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship import contract
from marship.contract import (
    Contract,
    GoldenCase,
    TensorSpec,
    digest_files,
    read_golden,
    write_golden,
)
from marship.contract.tolerance import Tolerance, agree, largest_difference
from marship.errors import ModelError

CONTRACT = Contract(
    inputs=(TensorSpec("items", "int64", ("batch", "length"), pad_value=0.0, value_range=(0, 29)),),
    outputs=(TensorSpec("scores", "float32", ("batch", 30)),),
    files=("model.onnx",),
    digest="ab" * 32,
    opset=23,
    batch_axis="batch",
    bounds={"batch": (1, None), "length": (1, 50)},
    tolerance=Tolerance(1e-5, 0.0),
    steps={"length": 2},
)


def test_a_contract_survives_json() -> None:
    """Reading what was written gives an equal contract."""
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", CONTRACT.to_json()[:-9], json.dumps({"format": 1, "inputs": []})],
)
def test_what_is_no_contract_is_a_model_error(text: str) -> None:
    """Whatever is wrong with it, and it says what to do."""
    with pytest.raises(ModelError, match="Export the model again"):
        Contract.from_json(text)


def test_a_contract_of_before_has_no_steps() -> None:
    """Archives that lie packed are read as they were written; an impossible step is refused."""
    raw = json.loads(CONTRACT.to_json())
    del raw["steps"]
    assert Contract.from_json(json.dumps(raw)) == replace(CONTRACT, steps={})
    for step in (0, -1, True, 1.5, "2", None):
        with pytest.raises(ModelError, match="must be a contract"):
            Contract.from_json(json.dumps(raw | {"steps": {"length": step}}))


@pytest.mark.parametrize(
    ("axis", "taken", "refused", "rule"),
    [
        ("length", (2, 50), (1, 3, 51, 52), "from 1 to 50 and a multiple of 2"),
        ("batch", (1, 10**9), (0,), "at least 1"),
        ("other", (1, 7), (0,), "at least 1"),
    ],
)
def test_the_sizes_of_an_axis(
    axis: str, taken: tuple[int, ...], refused: tuple[int, ...], rule: str
) -> None:
    """Bounds and multiples, as they are checked and as they are told."""
    assert all(CONTRACT.takes_size(axis, size) for size in taken)
    assert not any(CONTRACT.takes_size(axis, size) for size in refused)
    assert CONTRACT.size_rule(axis) == rule


def test_a_contract_of_another_format_is_refused() -> None:
    """A later format is not half understood."""
    raw = json.loads(CONTRACT.to_json()) | {"format": 2}
    with pytest.raises(ModelError, match="format 1"):
        Contract.from_json(json.dumps(raw))


def test_golden_cases_survive_npz(tmp_path: Path) -> None:
    """In their order, with names that hold slashes, also more than ten of them."""
    cases = [
        GoldenCase({"a/b": np.full((2, 3), i)}, {"y": np.array([np.nan, i], np.float32)})
        for i in range(12)
    ]
    write_golden(tmp_path / "golden.npz", cases)
    found = read_golden(tmp_path / "golden.npz")
    assert len(found) == 12
    for case, want in zip(found, cases, strict=True):
        np.testing.assert_array_equal(case.inputs["a/b"], want.inputs["a/b"])
        np.testing.assert_array_equal(case.outputs["y"], want.outputs["y"])


ANY_TEXT = st.text() | st.sampled_from(["", "\0", "a\0\0", "\0a", "𝄞\U0010ffff", "ä" * 70_000])


@given(texts=st.lists(ANY_TEXT, max_size=6), columns=st.sampled_from([None, 1]))
def test_any_text_survives_npz(texts: list[str], columns: int | None) -> None:
    """Without pickle: empty, long, with NUL at its end, beyond the first plane of Unicode."""
    array = np.array([*texts, None], dtype=object)[:-1]
    array = array if columns is None else array.reshape(-1, columns)
    file = io.BytesIO()
    write_golden(file, [GoldenCase({"x/y": array, "n": np.arange(2)}, {"x/y": array[::-1]})])
    file.seek(0)
    (found,) = read_golden(file)
    assert found.inputs["x/y"].dtype == object
    assert found.inputs["x/y"].shape == array.shape
    assert found.inputs["x/y"].tolist() == array.tolist()
    assert found.outputs["x/y"].tolist() == array[::-1].tolist()
    assert found.inputs["n"].tolist() == [0, 1]
    assert agree(found.inputs, {"x/y": array}, Tolerance())


@pytest.mark.parametrize("lengths", [[1, 1], [-1, 4], [3.0], [2, 1]])
def test_text_that_is_not_whole_is_a_model_error(lengths: list[float]) -> None:
    """Lengths that are not those of the bytes, or cut a letter in two."""
    file = io.BytesIO()
    data = np.frombuffer("aä".encode(), np.uint8)
    np.savez(file, **{"0/in.text/x": data, "0/in.lengths/x": np.array(lengths)})
    file.seek(0)
    with pytest.raises(ModelError, match="golden"):
        read_golden(file)


@pytest.mark.parametrize("content", [None, b"", b"damaged", b"PK\x03\x04"])
def test_damaged_golden_cases_are_a_model_error(tmp_path: Path, content: bytes | None) -> None:
    """A missing file, too."""
    path = tmp_path / "golden.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="golden"):
        read_golden(path)


def f32(*values: float) -> dict[str, np.ndarray]:
    """One output."""
    return {"y": np.array(values, np.float32)}


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [
        (f32(1, 2), f32(1, 2), (0, 0)),
        (f32(1.5, 2), f32(1, 2), (0.5, 0.5)),
        (f32(0.5, 4), f32(0, 5), (1, 0.2)),
        (f32(np.nan), f32(np.nan), (0, 0)),
        (f32(np.inf), f32(np.inf), (0, 0)),
        (f32(np.nan), f32(1), (np.inf, np.inf)),
        (f32(np.inf), f32(-np.inf), (np.inf, np.inf)),
        (f32(1), f32(1, 1), (np.inf, np.inf)),
        (f32(), f32(), (0, 0)),
        ({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, (np.inf, np.inf)),
    ],
)
def test_the_largest_difference(got: dict, want: dict, difference: tuple[float, float]) -> None:
    """Over all elements; what is not comparable is infinitely far."""
    assert largest_difference(got, want) == pytest.approx(difference)


@pytest.mark.parametrize(
    ("got", "want", "agrees"),
    [
        (f32(1.05, 10), f32(1, 10), True),
        (f32(1.2, 10), f32(1, 10), False),
        (f32(1, 10.9), f32(1, 10), True),
        (f32(np.nan), f32(np.nan), True),
        (f32(np.nan), f32(0), False),
        (f32(1), f32(1, 1), False),
        ({"y": np.array(["a"])}, {"y": np.array(["a"])}, True),
        ({"y": np.array([1])}, {"y": np.array([2])}, False),
    ],
)
def test_agreement_is_element_by_element(got: dict, want: dict, *, agrees: bool) -> None:
    """Within atol + rtol x |want| for floats; the same for all else."""
    assert agree(got, want, Tolerance(atol=0.1, rtol=0.1)) is agrees


@given(
    size=st.floats(1e-9, 1e9),
    error=st.floats(0, 2),
    seed=st.integers(0, 1000),
)
def test_what_is_off_by_a_share_of_an_output_is_seen_at_every_magnitude(
    size: float, error: float, seed: int
) -> None:
    """One per cent off is refused and float noise is not, whatever unit an output has."""
    want = {"y": np.random.default_rng(seed).uniform(-1, 1, 100) * size}
    want["y"][:10] = 0
    want["y"][10] = size
    tolerance = Tolerance().scaled([want])
    noise = {"y": want["y"] + size * 1e-7}
    assert agree(noise, want, tolerance)
    assert not agree({"y": want["y"] * (1.01 + error)}, want, tolerance)


def test_only_small_outputs_are_compared_more_closely() -> None:
    """One that is zero throughout, and one of whole numbers, say nothing of their magnitude."""
    answers = [{"a": f32(2)["y"], "b": f32(1e-5, 0)["y"], "c": f32(0)["y"], "n": np.array([1])}]
    found = Tolerance().scaled(answers)
    assert found.absolute("a") == found.absolute("c") == 1e-4
    assert found.absolute("b") == pytest.approx(1e-8)
    assert "for b 1e-08" in str(found)


@pytest.mark.parametrize("none", [-1e4, -1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_values_that_stand_for_none_excuse_no_difference_in_the_others(
    none: float, share: float
) -> None:
    """A share of scores is masked out, by a constant in place of them: no tolerance grows."""
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((20, 30)).astype(np.float32)
    want = np.where(generator.random(scores.shape) < share, np.float32(none), scores)
    tolerance = Tolerance().scaled([{"y": want}])
    assert tolerance.absolute("y") == 1e-4
    assert agree({"y": want * np.float32(1 - 1e-6)}, {"y": want}, tolerance)
    small = {"y": np.where(want == np.float32(none), want, want * np.float32(1e-5))}
    assert Tolerance().scaled([small]).absolute("y") < 1e-7


def test_a_date_beside_a_probability_excuses_no_difference_in_it() -> None:
    """Columns of one output in other units."""
    generator = np.random.default_rng(0)
    rows = np.stack([generator.random(50), 1.7e9 + generator.random(50)], 1).astype(np.float32)
    assert Tolerance().scaled([{"y": rows}]).absolute("y") == 1e-4


def test_a_contract_from_before_outputs_had_factors_is_read() -> None:
    """An archive that was packed earlier loads, with the tolerance that it states."""
    raw = json.loads(CONTRACT.to_json())
    del raw["tolerance"]["factors"]
    assert Contract.from_json(json.dumps(raw)) == CONTRACT


def test_a_spec_reads_as_messages_show_it() -> None:
    """Name, type, axes."""
    assert str(CONTRACT.inputs[0]) == "items: int64[batch, length]"


def test_a_digest_covers_every_file_in_order(tmp_path: Path) -> None:
    """The bytes of all files, one after the other."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1" * 2_000_000)
    second.write_bytes(b"2")
    assert digest_files(first, second) != digest_files(second, first)
    assert len(digest_files(first)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"tolerance": {"atol": "x", "rtol": 1}},
        {"tolerance": {"atol": float("nan"), "rtol": 1}},
        {"bounds": {"batch": "ab"}},
        {"bounds": {"batch": [2, 1]}},
        {"bounds": {"batch": [1]}},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-5]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [10**30]}]},
        {"inputs": [{"name": "x", "dtype": "object", "shape": []}]},
        {"inputs": [{"name": ["x"], "dtype": "float32", "shape": []}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [], "value_range": [1]}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [], "value_range": [0.5, 1]}]},
        *(
            {
                "inputs": [
                    {
                        "name": "x",
                        "dtype": "int64",
                        "shape": ["n", 2],
                        "column_ranges": [{"axis": 1, "place": 1, "low": 0, "high": 9} | wrong],
                    }
                ]
            }
            for wrong in (
                {"axis": 2},
                {"axis": -1},
                {"axis": 0},
                {"place": 2},
                {"place": -1},
                {"low": -1 << 70},
                {"high": 0.5},
                {"more": 1},
            )
        ),
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [], "other": 1}]},
        {"inputs": [{"name": "x"}]},
        {"files": "abc"},
        {"files": []},
        {"files": ["../model.onnx"]},
        {"opset": True},
        {"opset": 17.5},
        {"digest": None},
        {"batch_axis": 0},
    ],
)
def test_a_contract_of_other_types_is_a_model_error(change: dict[str, object]) -> None:
    """Every field is held against its annotation, so that nobody who reads one must."""
    raw = json.loads(CONTRACT.to_json()) | change
    with pytest.raises(ModelError, match="must be a contract"):
        Contract.from_json(json.dumps(raw))


def npz(**arrays: bytes) -> io.BytesIO:
    """A deflated npz of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in arrays.items():
            zipped.writestr(f"{name}.npy", data)
    buffer.seek(0)
    return buffer


def npy(header: str, data: bytes = b"") -> bytes:
    """An npy file with this header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


SHAPED = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    "data",
    [
        npy(SHAPED.format("(10**15,)")),
        npy(SHAPED.format("(1000000000000000,)")),
        npy(SHAPED.format("(-1,)")),
        npy(SHAPED.format("'x'")),
        npy("(" * 300),
        npy("{'descr': '((((', 'fortran_order': False, 'shape': ()}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
        b"no npy",
        b"",
    ],
)
def test_arrays_that_lie_are_a_model_error(data: bytes) -> None:
    """Headers that claim a petabyte, or are not Python: an error of our own."""
    with pytest.raises(ModelError, match="golden cases"):
        read_golden(npz(**{"0/in/x": data}))


def test_golden_cases_that_unpack_to_too_much_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the directory says of them together, before the first is unpacked."""
    monkeypatch.setattr(contract.golden, "MOST_GOLDEN_BYTES", 1000)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ModelError, match="1,000 are allowed"):
        read_golden(npz(**{f"{i}/in/x": bytes(400) for i in range(3)}))
