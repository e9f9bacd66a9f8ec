"""optimizing.step: variants are built or explained, measured, and chosen by the stated rule."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import zoo
from marship.contract import Contract, read_golden
from marship.contract.tolerance import Tolerance, agree
from marship.errors import DataError, MarshipError, ModelError, UsageError
from marship.exporting.step import ExportSettings, export_run
from marship.fit import origin
from marship.fit.recipe import Recipe, resolve
from marship.optimizing import material, measure, step
from marship.optimizing.passes import float32 as float32_pass
from marship.optimizing.source import ExportedModel
from marship.optimizing.step import OptimizeSettings, optimize
from marship.optimizing.trial import EXACT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchlib_read_once")]

ZOO = Path(zoo.__file__)
QUICK = OptimizeSettings(measure_s=0.5)
RECIPE = Recipe(
    "digits", build=f"{ZOO}:Digits", judge=f"{ZOO}:judge", metric="accuracy", budget=0.02
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small CNN that was trained on real digits, exported."""
    from sklearn import datasets  # here: test-fast collects this file and needs it not

    folder = tmp_path_factory.mktemp("digits")
    digits = datasets.load_digits()
    images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target
    torch.manual_seed(0)
    model = resolve(f"{ZOO}:Digits")()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for start in range(0, 1400, 50):
        x, y = (torch.from_numpy(a[start : start + 50]) for a in (images, labels))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "checkpoint.pt")
    (folder / "settings.json").write_text("{}")
    np.savez(folder / "examples.npz", image=images[:32])
    np.savez(folder / "calibration.npz", image=images[:100])
    targets = {"target/label": labels[1400:]}
    np.savez(folder / "heldout.npz", image=images[1400:], **targets)
    RECIPE.save(folder)
    export_run(folder, ExportSettings())
    return folder


@pytest.fixture(scope="module")
def optimized(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run folder, optimized."""
    folder = tmp_path_factory.mktemp("optimized") / "digits"
    shutil.copytree(exported, folder)
    optimize(folder, QUICK)
    return folder


@pytest.fixture
def run_dir(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported run folder that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "digits"))


def variants(folder: Path) -> dict[str, dict]:
    """The report's entries by name."""
    report = json.loads((folder / "optimize.json").read_text())
    return {entry["name"]: entry for entry in report["variants"]}


def test_every_pass_is_in_the_report_built_or_with_its_reason(optimized: Path) -> None:
    """float16 needs another provider, int8_blocks a loop, and their verdicts say so."""
    found = variants(optimized)
    built = ["exported", "float32", "int8_dynamic", "int8_static"]
    assert list(found) == [*built, "int8_blocks", "float16"]
    assert [name for name, entry in found.items() if entry["built"]] == built
    assert "no loop" in found["int8_blocks"]["why"]
    assert "CPU provider" in found["float16"]["why"]
    assert found["float16"]["verdict"] == "not built"


def test_every_built_variant_is_measured(optimized: Path) -> None:
    """Size, load time, latency of 1 and 16 rows, the metric, its drop and the difference."""
    for entry in variants(optimized).values():
        if not entry["built"]:
            continue
        assert entry["size_bytes"] == (optimized / entry["file"]).stat().st_size
        assert set(entry["latency_ms"]) == {"1", "16"}
        assert all(0 < t["median"] <= t["p99"] for t in entry["latency_ms"].values())
        assert entry["metrics"]["accuracy"] > 0.8
        assert entry["load_ms"] > 0
    drop = variants(optimized)["int8_static"]["metric_drop"]
    metrics = {name: e["metrics"].get("accuracy") for name, e in variants(optimized).items()}
    assert drop == pytest.approx(metrics["exported"] - metrics["int8_static"])


def test_int8_weights_are_smaller_and_int8(optimized: Path) -> None:
    """Both int8 files are smaller than float32, and the static one holds QDQ pairs."""
    found = variants(optimized)
    for name in ("int8_dynamic", "int8_static"):
        assert found[name]["size_bytes"] < found["exported"]["size_bytes"]
    graph = onnx.load(optimized / "model.int8_static.onnx").graph
    assert "DequantizeLinear" in {node.op_type for node in graph.node}
    scales = [i for i in graph.initializer if i.name.endswith("weight_scale")]
    assert any(len(scale.dims) == 1 and scale.dims[0] == 16 for scale in scales)  # per channel


def test_each_variant_repeats_the_golden_cases_within_its_own_tolerance(optimized: Path) -> None:
    """float32 keeps the contract's tolerance; the int8 ones state a wider, measured one."""
    contract = Contract.from_json((optimized / "contract.json").read_bytes())
    for name, entry in variants(optimized).items():
        if not entry["built"]:
            continue
        tolerance = Tolerance(**entry["tolerance"])
        session = onnxruntime.InferenceSession(optimized / entry["file"])
        for case in read_golden(optimized / "golden.npz"):
            answer = session.run(None, case.inputs)
            assert agree({"output": answer[0]}, case.outputs, tolerance)
        if name.startswith("int8"):
            difference = entry["largest_difference"]["absolute"]
            assert difference > contract.tolerance.atol
            assert tolerance == Tolerance(atol=2 * difference, rtol=0.0)
        else:
            assert tolerance == contract.tolerance


def test_dynamic_int8_is_not_chosen_where_rows_share_a_call(optimized: Path) -> None:
    """One scale serves the whole batch, so a row's output depends on its neighbours."""
    assert "one scale for the whole call" in variants(optimized)["int8_dynamic"]["why"]
    assert json.loads((optimized / "optimize.json").read_text())["chosen"] != "int8_dynamic"


def test_the_report_has_a_picture_and_tells_the_machine(optimized: Path) -> None:
    """optimize.png is drawn; processor, versions and the model's digest are stated."""
    assert (optimized / "optimize.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((optimized / "optimize.json").read_text())
    contract = Contract.from_json((optimized / "contract.json").read_bytes())
    assert report["model_digest"] == contract.digest
    assert report["machine"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert report["machine"]["cores"] >= 1
    assert report["why"]


def test_an_unchanged_run_is_not_optimized_twice(optimized: Path) -> None:
    """The second run keeps everything; other held-out data does not."""
    before = (optimized / "optimize.json").read_bytes()
    assert not optimize(optimized, QUICK).fresh
    assert (optimized / "optimize.json").read_bytes() == before


def test_another_machine_optimizes_anew(optimized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times and int8 kernels are the processor's, so its result is not kept elsewhere."""
    here = step._fingerprint(material.gather(optimized, QUICK), QUICK)
    assert here == step._fingerprint(material.gather(optimized, QUICK), QUICK)
    monkeypatch.setattr(step, "machine", lambda: origin.machine() | {"features": ["other"]})
    assert here != step._fingerprint(material.gather(optimized, QUICK), QUICK)


def test_a_variant_can_be_chosen_by_hand(run_dir: Path) -> None:
    """--variant wins over the rule, and the report says what spoke against it."""
    report = optimize(run_dir, replace(QUICK, variant="int8_dynamic")).report
    assert report["chosen"] == "int8_dynamic"
    assert "although" in report["why"]


def test_without_a_judge_int8_is_built_but_not_chosen(run_dir: Path) -> None:
    """Outputs outside of the export's tolerance need a judge, or real inputs to compare them on."""
    replace(RECIPE, judge=None, metric=None).save(run_dir)
    (run_dir / "heldout.npz").unlink()
    with np.load(run_dir / "calibration.npz") as rows:
        np.savez(run_dir / "calibration.npz", image=rows["image"][:31])
    report = optimize(run_dir, QUICK).report
    assert report["chosen"] == "float32"
    for name in ("int8_dynamic", "int8_static"):
        assert "no judge and fewer than 32" in variants(run_dir)[name]["why"]
        assert variants(run_dir)[name]["metric_drop"] is None
    assert report["compared"] is None


def test_without_a_judge_real_inputs_decide(run_dir: Path) -> None:
    """Held-out rows, or every fourth of calibration, by output; bounds of 0 admit no int8."""
    replace(RECIPE, judge=None, metric=None).save(run_dir)
    report = optimize(run_dir, QUICK).report
    assert report["compared"]["rows"] == 397
    assert report["compared"]["rows_from"] == "heldout.npz"
    assert "does not prove accuracy on labels" in report["compared"]["not_proven"]
    found = variants(run_dir)["int8_static"]
    assert found["verdict"] != "rejected"
    assert 0 < found["outputs"]["output"]["error"] < 0.05
    assert found["outputs"]["output"]["agreement"] > 0.99
    (run_dir / "heldout.npz").unlink()
    report = optimize(run_dir, replace(QUICK, most_error=0.0)).report
    assert report["compared"]["rows"] == 25
    assert "calibration data" in report["compared"]["rows_from"]
    assert "of its spread on 25 real rows, more than 0" in variants(run_dir)["int8_static"]["why"]
    assert report["chosen"] in EXACT


def test_a_pass_without_its_data_is_reported(run_dir: Path) -> None:
    """Static int8 needs calibration.npz; an older file of that variant is removed."""
    (run_dir / "calibration.npz").unlink()
    (run_dir / "model.int8_static.onnx").write_bytes(b"from an earlier run")
    optimize(run_dir, QUICK)
    assert "calibration.npz" in variants(run_dir)["int8_static"]["why"]
    assert not (run_dir / "model.int8_static.onnx").exists()


def spoil_judge(folder: Path) -> None:
    """A judge that raises."""
    replace(RECIPE, judge=f"{ZOO}:failing_judge").save(folder)


def spoil_metric(folder: Path) -> None:
    """A metric that the judge does not give."""
    replace(RECIPE, metric="f1").save(folder)


def spoil_model(folder: Path) -> None:
    """A model file that the contract was not written for."""
    (folder / "model.onnx").write_bytes(b"damaged")


def spoil_heldout(folder: Path) -> None:
    """Held-out rows of another type than the model takes."""
    np.savez(folder / "heldout.npz", image=np.zeros((4, 1, 8, 8)))


def spoil_calibration(folder: Path) -> None:
    """A file that is no npz."""
    (folder / "calibration.npz").write_bytes(b"damaged")


def spoil_export(folder: Path) -> None:
    """No export at all."""
    (folder / "contract.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (spoil_judge, DataError, "failing_judge must judge the held-out outputs"),
        (spoil_metric, DataError, "metric f1, got accuracy"),
        (spoil_model, ModelError, "another digest"),
        (spoil_heldout, DataError, r"image: float32\[batch, 1, 8, 8\], got float64"),
        (spoil_calibration, DataError, "calibration.npz must be an npz"),
        (spoil_export, UsageError, "marship export"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(
    run_dir: Path, spoil: Callable[[Path], None], error: type[MarshipError], says: str
) -> None:
    """One line that names the fault; no variant, no report, no draft."""
    spoil(run_dir)
    before = sorted(path.name for path in run_dir.iterdir())
    with pytest.raises(error, match=says):
        optimize(run_dir, QUICK)
    assert sorted(path.name for path in run_dir.iterdir()) == before


def test_an_unknown_variant_is_a_usage_error(run_dir: Path) -> None:
    """The known ones are listed."""
    with pytest.raises(UsageError, match="int8_static"):
        optimize(run_dir, replace(QUICK, variant="int4"))


def test_float32_is_held_to_the_tolerance(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant whose outputs are off is measured, reported, and not chosen."""

    def wrong(source: ExportedModel, target: Path) -> None:
        model = onnx.load(source.path)
        bias = next(i for i in model.graph.initializer if list(i.dims) == [10])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(model, target)

    monkeypatch.setattr(float32_pass, "build", wrong)
    report = optimize(run_dir, QUICK).report
    assert report["chosen"] == "exported"
    assert "more than the export's tolerance" in variants(run_dir)["float32"]["why"]


def test_each_output_of_a_variant_has_a_tolerance_of_its_own() -> None:
    """Twice what it was off by, and never less than the export's."""
    want = [{"a": np.ones(3), "b": np.full(3, 1e-3), "c": np.zeros(3), "n": np.arange(3)}]
    got = [
        {"a": want[0]["a"] + 0.5, "b": want[0]["b"] + 1e-3, "c": want[0]["c"], "n": np.arange(3)}
    ]
    found = measure.own_tolerance(got, want, Tolerance())
    assert found.absolute("a") == pytest.approx(1.0)
    assert found.absolute("b") == pytest.approx(2e-3)
    assert found.absolute("c") == pytest.approx(1e-4)


def test_speedup_is_what_is_sure() -> None:
    """Twice as fast is nearly 2, noise alone is at most 1, and few rounds promise less."""
    noise = np.random.default_rng(0).lognormal(0, 0.3, (2, 400))
    assert 1.85 < measure.sure_speedup(2 * noise[0], noise[1]) < 2
    assert measure.sure_speedup(noise[0], noise[1]) < 1
    few = measure.sure_speedup(2 * noise[0, :20], noise[1, :20])
    assert few < measure.sure_speedup(2 * noise[0], noise[1])
