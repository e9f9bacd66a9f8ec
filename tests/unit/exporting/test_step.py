"""marship.exporting.step: from weights to a proven ONNX file, whole or not at all."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.modules import transformer

import zoo
from marship.contract import Contract, read_golden
from marship.contract.tolerance import Tolerance, agree
from marship.errors import (
    CheckpointError,
    DataError,
    MarshipError,
    ModelError,
    ParityError,
    UsageError,
)
from marship.exporting import capture, outputs
from marship.exporting.step import Exported, ExportSettings, export_model, export_run
from marship.fit.recipe import Recipe, resolve
from marship.proof import cases, graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchlib_read_once")]

ZOO = Path(zoo.__file__)
WRITTEN = {"model.onnx", "contract.json", "golden.npz", "parity.json"}


def numbers(*shape: int) -> np.ndarray:
    """Standard normal float32 values, the same every time."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def histories(rows: int = 9) -> dict[str, np.ndarray]:
    """Right-padded items and ratings, each row of another length."""
    generator = np.random.default_rng(0)
    items = generator.integers(1, 31, (rows, 12))
    for row, length in enumerate(generator.integers(1, 13, rows)):
        items[row, length:] = 0
    return {"items": items, "ratings": (items % 5 / 5).astype(np.float32)}


Own = Callable[..., Exported]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """Export a model of the zoo as one's own into `tmp_path / "run"`."""

    def export(kind: str, *, settings: ExportSettings | None = None, **inputs: Any) -> Exported:
        torch.manual_seed(0)
        model = resolve(f"{ZOO}:{kind}")()
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        np.savez(tmp_path / "example.npz", **inputs)
        return export_model(
            f"{ZOO}:{kind}",
            weights=tmp_path / "weights.pt",
            example=tmp_path / "example.npz",
            settings=settings or ExportSettings(),
            out=tmp_path / "run",
        )

    return export


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exported transformer and its weights."""
    folder = tmp_path_factory.mktemp("sequence")
    torch.manual_seed(0)
    torch.save(resolve(f"{ZOO}:Sequence")().state_dict(), folder / "weights.pt")
    np.savez(folder / "examples.npz", **histories())
    export_model(
        f"{ZOO}:Sequence",
        weights=folder / "weights.pt",
        example=folder / "examples.npz",
        settings=ExportSettings(pad=("items=0", "ratings=0")),
        out=folder,
    )
    return folder


def answer(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of the exported file."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True)
    )


def test_threads_that_export_at_once_leave_torch_as_it_was(tmp_path: Path) -> None:
    """What is exchanged in PyTorch while it traces is put back, whoever ends first."""
    torch.save(resolve(f"{ZOO}:Sequence")().state_dict(), tmp_path / "weights.pt")
    np.savez(tmp_path / "example.npz", **histories())

    def export(number: int) -> Exported:
        return export_model(
            f"{ZOO}:Sequence",
            weights=tmp_path / "weights.pt",
            example=tmp_path / "example.npz",
            settings=ExportSettings(pad=("items=0", "ratings=0")),
            out=tmp_path / str(number),
        )

    fused = torch.backends.mha.get_fastpath_enabled()
    detect, muted = transformer._detect_is_causal_mask, logging.root.manager.disable
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(export, range(3)))) == 3
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert transformer._detect_is_causal_mask is detect
    assert logging.root.manager.disable == muted
    assert not isinstance(sys.stderr, io.StringIO)


def test_a_transformer_travels_with_names_and_bounds(run_dir: Path) -> None:
    """Axes have readable names; pad values and bounds are in the contract."""
    contract = Contract.from_json((run_dir / "contract.json").read_bytes())
    assert [str(spec) for spec in contract.inputs] == [
        "items: int64[batch, length]",
        "ratings: float32[batch, length]",
    ]
    assert [str(spec) for spec in contract.outputs] == ["scores: float32[batch, 30]"]
    assert contract.batch_axis == "batch"
    assert contract.bounds == {"length": (1, 12)}
    assert [spec.pad_value for spec in contract.inputs] == [0, 0]


def test_onnx_gives_what_pytorch_gives(run_dir: Path) -> None:
    """On rows and a length that the export did not try."""
    model = resolve(f"{ZOO}:Sequence")()
    model.load_state_dict(torch.load(run_dir / "weights.pt", weights_only=True))
    inputs = {name: array[3:8, :7] for name, array in histories().items()}
    want = model.eval()(**{k: torch.from_numpy(v) for k, v in inputs.items()})["scores"]
    got = answer(run_dir, inputs)["scores"]
    np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-4, rtol=1e-3)


def test_the_evidence_covers_real_and_random_inputs_of_all_sizes(run_dir: Path) -> None:
    """parity.json states batch 1, 2 and 7 at three lengths, then other sizes, within tolerance."""
    report = json.loads((run_dir / "parity.json").read_text())
    seen = {(c["kind"], c["sizes"]["batch"], c["sizes"]["length"]) for c in report["cases"]}
    assert seen >= {(k, b, n) for k in ("real", "random") for b in (1, 2, 7) for n in (1, 5, 12)}
    assert {c["sizes"]["batch"] for c in report["cases"]} >= {63, 64, 65}
    assert {c["sizes"]["length"] for c in report["cases"]} >= set(range(1, 13)) - {6}
    assert {c["kind"] for c in report["cases"]} == {"real", "random", "wide"}
    assert not report["cases_left_out"]
    assert report["seed"] >= 0
    assert 0 < report["proof_seconds"] < report["proof_seconds_allowed"]
    assert 0 < report["largest_difference"]["absolute"] < report["tolerance"]["atol"]
    assert report["rows_padded_and_not"]["agrees"]
    assert report["rows_alone_and_together"]["agrees"]
    assert report["versions"]["torch"] == torch.__version__


def test_golden_cases_hold_the_outputs_of_pytorch(run_dir: Path) -> None:
    """golden.npz has batches of 1, 2 and 7 of different lengths that ONNX Runtime can repeat."""
    cases = read_golden(run_dir / "golden.npz")
    assert [len(case.inputs["items"]) for case in cases] == [1, 2, 7]
    assert len({case.inputs["items"].shape[1] for case in cases}) == 3
    assert all(agree(answer(run_dir, c.inputs), c.outputs, Tolerance()) for c in cases)


def test_a_run_folder_is_exported_with_the_settings_it_was_trained_with(tmp_path: Path) -> None:
    """Build gets those settings that it takes; examples, weights and name come from the folder."""
    torch.save(resolve(f"{ZOO}:mlp")(hidden=7).state_dict(), tmp_path / "checkpoint.pt")
    (tmp_path / "settings.json").write_text('{"hidden": 7, "epochs": 3}')
    np.savez(tmp_path / "examples.npz", input=numbers(4, 10))
    Recipe("small", build=f"{ZOO}:mlp").save(tmp_path)
    exported = export_run(tmp_path, ExportSettings())
    assert [str(spec) for spec in exported.contract.outputs] == ["output: float32[batch, 1]"]
    assert {path.name for path in tmp_path.iterdir()} >= WRITTEN


def test_an_unchanged_model_is_not_exported_twice_unless_forced(own: Own, tmp_path: Path) -> None:
    """The second run keeps the files; a damaged file, another example and --again do not."""
    assert own("Echo", x=numbers(4, 5)).fresh
    assert not own("Echo", x=numbers(4, 5)).fresh
    (tmp_path / "run" / "model.onnx").write_bytes(b"damaged")
    assert own("Echo", x=numbers(4, 5)).fresh
    assert own("Echo", x=numbers(5, 5)).fresh
    assert own("Echo", x=numbers(5, 5), settings=ExportSettings(again=True)).fresh


def test_an_export_over_the_tolerance_leaves_the_older_one(own: Own, tmp_path: Path) -> None:
    """A ParityError changes no byte of the run folder and leaves no draft."""
    own("Digits", image=numbers(4, 1, 8, 8))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ParityError, match=r"must be within 0 \+ 0 x"):
        own("Digits", settings=ExportSettings(atol=0.0, rtol=0.0), image=numbers(4, 1, 8, 8))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_padding_that_changes_an_output_is_refused(own: Own, tmp_path: Path) -> None:
    """The error names the input and its pad value, and nothing is left."""
    tokens = np.random.default_rng(0).integers(1, 20, (8, 6))
    with pytest.raises(ParityError, match="padding tokens with 0 must not change an output"):
        own("Reader", settings=ExportSettings(pad=("tokens=0",)), tokens=tokens)
    assert not list((tmp_path / "run").glob("*"))


def test_rows_that_influence_each_other_are_not_batched(own: Own) -> None:
    """The export succeeds, the contract has no batch axis, and the evidence names the operator."""
    exported = own("Mixing", x=numbers(8, 5))
    assert exported.contract.batch_axis is None
    reason = exported.report["rows_alone_and_together"]["reason"]
    assert re.search(r"\w+ '\w+' \w+ over the rows of a call", reason)


def test_a_recurrent_model_keeps_its_length_variable(own: Own, tmp_path: Path) -> None:
    """Nested outputs get names, and lengths other than the example's are stated and answered."""
    exported = own("Recurrent", settings=ExportSettings(dynamic=("x:1=time",)), x=numbers(4, 6, 4))
    assert [str(spec) for spec in exported.contract.outputs] == [
        "states: float32[batch, time, 6]",
        "last_0: float32[1, batch, 6]",
        "last_1: float32[1, batch, 6]",
    ]
    assert answer(tmp_path / "run", {"x": numbers(3, 2, 4)})["states"].shape == (3, 2, 6)


def test_a_recurrent_layer_after_another_is_exported(own: Own, tmp_path: Path) -> None:
    """An LSTM's output of variable length goes into a GRU."""
    own("Stacked", settings=ExportSettings(dynamic=("x:1=time",)), x=numbers(4, 6, 4))
    assert answer(tmp_path / "run", {"x": numbers(3, 2, 4)})["output"].shape == (3, 2, 5)


def test_a_number_of_rows_taken_with_len_stays_variable(own: Own, tmp_path: Path) -> None:
    """What a plain trace makes a constant is traced once more, by dynamo."""
    own("Counting", x=numbers(4, 5))
    assert answer(tmp_path / "run", {"x": numbers(6, 5)})["output"].shape == (6, 5)


def test_a_compiled_model_is_exported_as_the_one_it_wraps(tmp_path: Path) -> None:
    """What torch.compile adds is for PyTorch alone."""
    np.savez(tmp_path / "example.npz", input=numbers(4, 10))
    example, out = tmp_path / "example.npz", tmp_path / "run"
    done = export_model(f"{ZOO}:compiled", example=example, settings=ExportSettings(), out=out)
    assert [str(spec) for spec in done.contract.inputs] == ["input: float32[batch, 10]"]


def test_outputs_of_other_rank_at_one_row_are_refused(own: Own) -> None:
    """squeeze(0) also removes a batch of one; it says so in one line."""
    with pytest.raises(ModelError, match=r"one rank .* squeeze\(-1\)"):
        own("Dropped", x=numbers(4, 5))


def test_a_rule_for_one_size_is_found_by_the_comparison_there(own: Own) -> None:
    """The error names the size and the line."""
    with pytest.raises(ParityError, match=r"batch 1.*x\.shape\[0\] == 1 else x` \(zoo\.py"):
        own("Single", x=numbers(4, 5))


def test_small_outputs_are_compared_at_their_own_scale(own: Own) -> None:
    """The contract says so, for the output that is small only."""
    contract = own("Tiny", x=numbers(4, 5)).contract
    assert set(contract.tolerance.factors) == {"output_0"}
    assert contract.tolerance.absolute("output_0") < 1e-7


def test_a_model_that_runs_with_an_older_opset_is_exported_with_it(
    own: Own, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime refuses the Attention of opset 23 with such a mask; what was done is printed."""
    keep = np.random.default_rng(0).random((6, 8)) > 0.3
    exported = own("Attending", x=numbers(6, 8, 4), keep=keep)
    assert exported.contract.opset == 22
    assert "opset 22 was taken" in capsys.readouterr().out


def test_an_encoder_with_a_padding_mask_is_exported_with_the_newest_opset(own: Own) -> None:
    """Its mask is one for all queries, which torch's own conversion leaves as it is."""
    tokens = np.random.default_rng(0).integers(1, 20, (6, 8))
    tokens[0, 3:] = tokens[4, 5:] = 0
    exported = own("Encoder", settings=ExportSettings(pad=("tokens=0",)), tokens=tokens)
    assert exported.contract.opset == ExportSettings().opset


def test_editing_what_build_imports_exports_anew(tmp_path: Path) -> None:
    """A module beside the file that build lies in is part of what the model is made from."""
    (tmp_path / "inner.py").write_text("WIDTH = 1\n")
    (tmp_path / "layers.py").write_text("from inner import WIDTH\n")
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef build():\n    from layers import WIDTH\n"
        "    return torch.nn.Linear(5, WIDTH)\n"
    )
    np.savez(tmp_path / "example.npz", input=numbers(4, 5))

    def fresh() -> bool:
        example, out = tmp_path / "example.npz", tmp_path / "run"
        build = f"{tmp_path / 'net.py'}:build"
        return export_model(build, example=example, settings=ExportSettings(), out=out).fresh

    assert fresh()
    assert not fresh()
    (tmp_path / "inner.py").write_text("WIDTH = 2\n")
    assert fresh()


def test_outputs_get_readable_names(own: Own) -> None:
    """Tuples are numbered, a clash with an input is resolved, given names win."""
    names = [spec.name for spec in own("Several", x=numbers(4, 5)).contract.outputs]
    assert names == ["output_0", "output_1_0", "output_1_1"]
    given = ExportSettings(output_names=("double", "best", "where"))
    names = [s.name for s in own("Several", settings=given, x=numbers(4, 5)).contract.outputs]
    assert names == ["double", "best", "where"]
    assert [spec.name for spec in own("Echo", x=numbers(4, 5)).contract.outputs] == ["x_out"]


def test_a_convolutional_model_in_training_mode_is_exported_for_inference(own: Own) -> None:
    """Dropout and batch statistics are off: a batch axis could not be proven else."""
    assert own("Digits", image=numbers(3, 1, 8, 8)).contract.batch_axis == "batch"


def test_a_model_of_fixed_batch_is_exported_as_such(own: Own) -> None:
    """--fixed-batch keeps the example's first axis; without it the error names the flag."""
    with pytest.raises(ModelError, match="--fixed-batch"):
        own("FourRows", x=numbers(4, 5))
    exported = own("FourRows", settings=ExportSettings(fixed_batch=True), x=numbers(4, 5))
    assert [str(spec) for spec in exported.contract.inputs] == ["x: float32[4, 5]"]


def test_large_weights_lie_beside_the_file(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit there is one file of external data, and the digest covers it."""
    monkeypatch.setattr(capture, "WEIGHTS_INSIDE_LIMIT_BYTES", 100)
    exported = own("mlp", input=numbers(4, 10))
    assert exported.contract.files == ("model.onnx", "model.onnx.data")
    (tmp_path / "run" / "model.onnx.data").write_bytes(b"\0" * 4096)
    assert own("mlp", input=numbers(4, 10)).fresh


@pytest.mark.parametrize(
    ("kind", "inputs", "settings", "complaint"),
    [
        ("mlp", {"x": numbers(4, 10)}, {}, (DataError, "arrays named input, got x")),
        ("mlp", {"input": numbers(4, 10).astype(float)}, {}, (ModelError, "float64")),
        ("mlp", {"input": numbers(4, 9)}, {}, (ModelError, "cannot be multiplied")),
        ("mlp", {"input": numbers(0, 10)}, {}, (DataError, "size above 0")),
        ("Sequence", {"items": histories()["items"]}, {}, (DataError, "items, ratings, got items")),
        ("Random", {"x": numbers(4, 5)}, {}, (ParityError, "same outputs twice")),
        (
            "Branching",
            {"x": numbers(4, 5)},
            {},
            (ModelError, r"branch on .* \(in zoo.py, line \d+"),
        ),
        ("Several", {"x": numbers(4, 5)}, {"output_names": ("a",)}, (UsageError, "must be 3")),
        ("mlp", {"input": numbers(4, 10)}, {"dynamic": ("input:5=time",)}, (UsageError, "axis 5")),
        ("mlp", {"input": numbers(4, 10)}, {"dynamic": ("z:1=time",)}, (UsageError, "got 'z'")),
        ("mlp", {"input": numbers(4, 10)}, {"dynamic": ("input",)}, (UsageError, "name=value")),
        ("mlp", {"input": numbers(4, 10)}, {"bounds": ("length=1:5",)}, (UsageError, "length")),
        ("mlp", {"input": numbers(4, 10)}, {"bounds": ("batch=5:1",)}, (UsageError, "low <= high")),
        ("mlp", {"input": numbers(4, 10)}, {"pad": ("input=x",)}, (UsageError, "a number")),
        ("mlp", {"input": numbers(4, 10)}, {"opset": 99}, (UsageError, "opset")),
        (
            "Sequence",
            histories(),
            {"pad": ("items=0",), "dynamic": ("ratings:1=length",)},
            (UsageError, "ratings must have a pad value"),
        ),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    own: Own,
    kind: str,
    inputs: dict[str, np.ndarray],
    settings: dict[str, Any],
    complaint: tuple[type[MarshipError], str],
) -> None:
    """The message names the cause and has one line."""
    error, says = complaint
    with pytest.raises(error, match=says) as caught:
        own(kind, settings=ExportSettings(**settings), **inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (f"{ZOO}:failing", "RuntimeError: the data is on another machine"),
        (f"{ZOO}:no_model", "an nn.Module, got int"),
        (f"{ZOO}:traced", "neither traced nor scripted"),
        (f"{ZOO}:nothing", "function nothing"),
        ("no_such_package.models:build", "importable"),
    ],
)
def test_a_build_that_gives_no_model_is_named(tmp_path: Path, build: str, says: str) -> None:
    """Whatever is wrong with build is a UsageError that says what."""
    np.savez(tmp_path / "example.npz", input=numbers(4, 10))
    with pytest.raises(UsageError, match=says):
        export_model(
            build,
            example=tmp_path / "example.npz",
            settings=ExportSettings(),
            out=tmp_path / "run",
        )


def test_weights_of_another_model_are_refused(own: Own, tmp_path: Path) -> None:
    """The error is a CheckpointError, and an older export stays as it was."""
    own("mlp", input=numbers(4, 10))
    before = (tmp_path / "run" / "model.onnx").read_bytes()
    other = resolve(f"{ZOO}:mlp")(hidden=3)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="must hold the weights"):
        export_model(
            f"{ZOO}:mlp",
            weights=tmp_path / "other.pt",
            example=tmp_path / "example.npz",
            settings=ExportSettings(),
            out=tmp_path / "run",
        )
    assert (tmp_path / "run" / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"not an npz", b"PK\x03\x04 broken"])
def test_a_missing_or_damaged_example_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """It says how to write one."""
    if content is not None:
        (tmp_path / "example.npz").write_bytes(content)
    with pytest.raises((UsageError, DataError), match=r"numpy\.savez"):
        export_model(
            f"{ZOO}:mlp",
            example=tmp_path / "example.npz",
            settings=ExportSettings(),
            out=tmp_path / "run",
        )


def test_an_example_of_another_byte_order_is_read(tmp_path: Path) -> None:
    """As other machines and formats have it: PyTorch takes the native one alone."""
    rows = numbers(4, 10)
    np.savez(tmp_path / "rows.npz", x=np.asfortranarray(rows.astype(">f4")))
    found = cases.read_rows(tmp_path / "rows.npz")["x"]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, rows)
    torch.from_numpy(found)


def test_an_example_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody writes to it."""
    os.mkfifo(tmp_path / "rows.npz")
    with pytest.raises(DataError, match="Not a regular file"):
        cases.read_rows(tmp_path / "rows.npz")


def test_settings_are_imported_without_the_heavy_libraries() -> None:
    """`marship --help` needs the settings and must not wait for torch, onnx or matplotlib."""
    code = (
        "import sys, marship.exporting.step, marship.optimizing.step;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_outputs_axes_get_the_names_that_a_recipe_gives(linear_onnx: Path, tmp_path: Path) -> None:
    """A variable axis is called so in the contract; what is no such axis is refused."""
    path = Path(shutil.copy(linear_onnx, tmp_path))
    outputs.name_output_axes(path, ("output:0=rows",))
    assert graph.contract_of(path).outputs[0].shape == ("rows", 2)
    for wrong in ("output:1=columns", "other:0=rows"):
        with pytest.raises(UsageError, match=r"must name variable axes, output:0, got"):
            outputs.name_output_axes(path, (wrong,))
