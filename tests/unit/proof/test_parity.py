"""proof.parity and proof.cases: which inputs are tried, and what the proofs catch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from marship.contract import Arrays, Contract, TensorSpec
from marship.errors import ModelError, ParityError, UsageError
from marship.proof import parity
from marship.proof.cases import draw_cases, draw_random, draw_real, sizes_to_try

ITEMS = TensorSpec("items", "int64", ("batch", "length"), pad_value=0)
TOTAL = TensorSpec("total", "float32", ("batch",))
STATES = TensorSpec("states", "float32", ("batch", "length"))


def contract(*outputs: TensorSpec, inputs: tuple[TensorSpec, ...] = (ITEMS,)) -> Contract:
    """A contract over items of length 1 to 10."""
    return Contract(
        inputs, outputs or (TOTAL,), ("model.onnx",), "", 23, bounds={"length": (1, 10)}
    )


def examples() -> Arrays:
    """Five right-padded rows of whole numbers from 3 to 9."""
    items = np.random.default_rng(0).integers(3, 10, (5, 10))
    for row, length in enumerate((10, 1, 4, 7, 2)):
        items[row, length:] = 0
    return {"items": items}


def summing(inputs: Arrays) -> Arrays:
    """Zero adds nothing, so zero pads."""
    return {"total": inputs["items"].sum(axis=1).astype(np.float32)}


def averaging(inputs: Arrays) -> Arrays:
    """A mean over the length counts the padding."""
    return {"total": inputs["items"].mean(axis=1).astype(np.float32)}


def centering(inputs: Arrays) -> Arrays:
    """Every row loses the mean of the batch."""
    total = inputs["items"].sum(axis=1).astype(np.float32)
    return {"total": total - total.mean()}


def refusing(inputs: Arrays) -> Arrays:
    """Takes one row at a time."""
    if len(inputs["items"]) > 1:
        raise ModelError("one row")
    return summing(inputs)


def test_cases_cover_batches_lengths_and_both_kinds() -> None:
    """Batch 1, 2 and 7; the smallest, a middle and the largest length; real and random."""
    cases = list(draw_cases(contract(), examples()))
    found = {(case.kind, *case.inputs["items"].shape) for case in cases}
    assert found == {(k, b, n) for k in ("real", "random") for b in (1, 2, 7) for n in (1, 5, 10)}


def test_real_cases_are_rows_of_the_examples() -> None:
    """Cut to the length, and repeated where there are fewer rows than requested."""
    case = draw_real(contract(), examples(), {"batch": 7, "length": 3}, seed=2)
    rows = {tuple(row[:3]) for row in examples()["items"]}
    assert case.inputs["items"].shape == (7, 3)
    assert {tuple(row) for row in case.inputs["items"]} == rows


def test_random_cases_stay_in_the_range_of_the_examples() -> None:
    """Whole numbers are values that were seen, and never the padding."""
    for case in draw_cases(contract(), examples()):
        if case.kind == "random":
            assert set(np.unique(case.inputs["items"])) <= set(range(3, 10))


def test_random_ids_are_of_the_whole_table() -> None:
    """Whatever was seen of it in the examples."""
    looked_up = replace(ITEMS, value_range=(0, 99))
    cases = draw_cases(contract(inputs=(looked_up,)), examples())
    drawn = np.concatenate([c.inputs["items"].ravel() for c in cases if c.kind == "random"])
    assert drawn.max() == 99
    assert drawn.min() == 1


def test_without_bounds_sizes_go_as_far_as_the_examples() -> None:
    """And to a stated default where there are none."""
    free = Contract((ITEMS,), (TOTAL,), (), "", 23)
    assert sizes_to_try(free, examples())[-1] == {"length": 10}
    assert sizes_to_try(free, None)[-1] == {"length": 8}


@pytest.mark.parametrize(
    ("run", "independent"), [(summing, True), (centering, False), (refusing, False)]
)
@pytest.mark.parametrize("rows", [examples(), None])
def test_rows_are_independent_only_where_alone_is_together(
    run: parity.RunModel, rows: Arrays | None, *, independent: bool
) -> None:
    """A sum of each row is; a batch mean is not, nor is what refuses a batch."""
    found = parity.row_influence(contract(), run, rows)
    assert found is not None
    assert found.agrees is independent
    assert (found.reason is None) is independent


def test_outputs_without_a_batch_axis_have_no_independent_rows() -> None:
    """There is nothing to hand back to each request."""
    whole = contract(TensorSpec("total", "float32", ()))
    found = parity.row_influence(
        whole, lambda inputs: {"total": np.float32(inputs["items"].sum())}, examples()
    )
    assert found is None


@pytest.mark.parametrize("batch_axis", ["batch", None])
def test_padding_that_changes_nothing_is_proven(batch_axis: str | None) -> None:
    """In one batch, or row by row where rows may not share one."""
    proven = Contract((ITEMS,), (TOTAL,), (), "", 23, batch_axis, {"length": (1, 20)})
    found = parity.prove_padding(proven, summing, examples())
    assert found is not None
    assert found.agrees
    assert found.absolute == 0
    assert found.sizes == {"length": 20}


def test_padding_is_compared_at_the_places_of_the_row() -> None:
    """Outputs at padded places do not count."""

    def running(inputs: Arrays) -> Arrays:
        return {"states": inputs["items"].cumsum(axis=1).astype(np.float32)}

    found = parity.prove_padding(contract(STATES), running, examples())
    assert found is not None
    assert found.absolute == 0


def test_padding_that_counts_is_refused() -> None:
    """The error names the input and its pad value."""
    with pytest.raises(ParityError, match="padding items with 0 must not change an output"):
        parity.prove_padding(contract(), averaging, examples())


def test_one_axis_cannot_be_padded_in_one_input_only() -> None:
    """The input without a pad value is named."""
    ratings = TensorSpec("ratings", "float32", ("batch", "length"))
    both = contract(inputs=(ITEMS, ratings))
    rows = examples() | {"ratings": np.ones((5, 10), np.float32)}
    with pytest.raises(UsageError, match="ratings must have a pad value"):
        parity.prove_padding(both, summing, rows)


def test_without_pad_values_there_is_nothing_to_prove() -> None:
    """The proof says that it does not apply."""
    plain = contract(inputs=(TensorSpec("items", "int64", ("batch", "length")),))
    assert parity.prove_padding(plain, averaging, examples()) is None


def test_a_bare_onnx_file_is_described_from_random_inputs(linear_onnx: Path) -> None:
    """Its batch axis is proven and its golden cases are its own outputs."""
    from marship.proof import graph

    run = parity.runner(linear_onnx)
    described, golden = parity.describe(graph.contract_of(linear_onnx), run)
    assert described.batch_axis == "batch"
    assert [len(case.inputs["input"]) for case in golden] == [1, 2, 7]
    for case in golden:
        want = case.inputs["input"] @ np.arange(6, dtype=np.float32).reshape(3, 2)
        np.testing.assert_allclose(case.outputs["output"], want, rtol=1e-5)


def test_a_file_that_does_not_load_or_run_is_a_model_error(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """One line each."""
    (tmp_path / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"model\.onnx must load"):
        parity.runner(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="must run on the inputs") as caught:
        parity.runner(linear_onnx)({"input": np.zeros((2, 9), np.float32)})
    assert "\n" not in str(caught.value)


def test_a_locale_that_the_machine_lacks_is_named(tmp_path: Path) -> None:
    """With how to generate it, in place of ONNX Runtime's source file."""
    node = helper.make_node(
        "StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="xx_YY.UTF-8"
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in "xy")
    body = helper.make_graph([node], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(body, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"no locale xx_YY\.UTF-8 .* localedef -i xx_YY"):
        parity.runner(tmp_path / "m.onnx")


def test_random_values_of_few_examples_hold_no_ties() -> None:
    """Cut to the range of the examples they would: operators choose differently among equals."""
    x, y = (TensorSpec(name, "float32", ("n", 5)) for name in "xy")
    seen = {"x": np.array([[-1, -0.9, 0, 0.9, 1]], np.float32)}
    for seed in range(20):
        drawn = draw_random(contract(y, inputs=(x,)), seen, {"n": 27}, seed).inputs["x"]
        assert np.abs(drawn).max() <= 1
        assert all(len(set(row)) == 5 for row in drawn.tolist())


CODES = "[ONNXRuntimeError] : 1 : FAIL : "
PLACE = "/onnxruntime_src/onnxruntime/core/providers/cpu/math"


@pytest.mark.parametrize(
    ("operator", "text", "told"),
    [
        ("Add", f"{PLACE}/a.h:5 void onnxruntime::B::Append(long, long) 16 by 17", "Add: 16 by 17"),
        ("Div", "element_wise_ops.cc:703 Compute Integer division", "Div: Integer division"),
        ("STFT", f"{PLACE}/d.cc:9 static int f(A*, bool) [with T = float] a <= b", "STFT: a <= b"),
        ("Cos", f"{CODES}tensor.cc:57 Size Tensor shape must be", "Cos: Tensor shape must be"),
        ("", "Got invalid dimensions for: x\n index: 0 Got: 3", "Got invalid dimensions for: x"),
        ("", "", "RuntimeError"),
    ],
)
def test_the_reason_of_onnx_runtime_is_one_line_without_its_source_files(
    operator: str, text: str, told: str
) -> None:
    """Its operator and its words; codes, node names and signatures tell a user nothing."""
    if operator:
        node = f"Non-zero status code returned while running {operator} node. Name:'/a/b'"
        text = f"{CODES}{node} Status Message: {text}"
    wrapped = ModelError("m.onnx must run")
    wrapped.__cause__ = RuntimeError(text)
    assert parity.reason(wrapped) == told
