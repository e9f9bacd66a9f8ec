"""From a run folder to a private archive and the file for its clients."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

import private_runs
from marship import PackageSettings, package
from marship.cli import app
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    GoldenCase,
    read_golden,
    write_golden,
)
from marship.errors import ModelError, PackageError, SealError, SignatureError, UsageError
from marship.operate.check import check
from marship.packaging.sbom import model as sbom
from marship.private import client_file, step
from marship.private.client_file import ClientFile
from marship.private.known import KnownCases
from marship.serving.private.plan import PLAN_FILE, HePlan
from marship.trust import archive as archives
from marship.trust import signature
from private_runs import INPUTS, LINEAR, OUTPUTS, SQUARE, WEIGHTS, numbers, packaged, run_folder
from signed import make_key, trusting


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> step.Packaged:
    """A linear model, packaged."""
    return packaged(tmp_path_factory.mktemp("linear"))


def test_the_archive_holds_the_plan_and_no_keys(linear: step.Packaged) -> None:
    """No ONNX file either: nothing in it computes on plain values."""
    with zipfile.ZipFile(linear.archive) as zipped:
        names = {name for name in zipped.namelist() if not name.startswith("marship/")}
        plan = HePlan.from_bytes(zipped.read(PLAN_FILE))
        contract = Contract.from_json(zipped.read(CONTRACT_FILE))
    assert names == {
        "MAR-INF/MANIFEST.json", "client.json", "contract.json", "encrypted_handler.py",
        "evidence.json", "golden.npz", "he_plan.npz", "model-config.yaml",
    }  # fmt: skip
    assert contract.files == (PLAN_FILE,)
    assert str(contract.inputs[0]) == f"x: float32[batch, {INPUTS}]"
    row = np.ones((1, INPUTS))
    assert plan.compute(row) == pytest.approx(row @ WEIGHTS["d"] + WEIGHTS["c"], rel=1e-5)


def test_the_client_file_is_public(linear: step.Packaged) -> None:
    """No weight and no key in it; a copy of it is in the archive."""
    data = linear.client_file.read_bytes()
    with zipfile.ZipFile(linear.archive) as zipped:
        assert zipped.read("client.json") == data
    found = ClientFile.from_bytes(data)
    assert found.to_bytes() == data
    assert (found.kind, found.model, found.input.shape) == ("he", "tiny", (INPUTS,))
    texts = {f"{value:.4f}" for name in "cd" for value in WEIGHTS[name].ravel()}
    shown = {
        f"{float(number):.4f}" for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", data.decode())
    }
    assert not texts & shown
    assert WEIGHTS["d"].astype(np.float64).tobytes()[:24] not in data
    assert found.known == hashlib.sha256(linear.known.read_bytes()).hexdigest()


def test_archive_and_client_file_are_repeatable(linear: step.Packaged, tmp_path: Path) -> None:
    """The same bytes of the same run folder: what is measured was measured at export."""
    settings = PackageSettings(model_store=tmp_path)
    again = step.package(linear.archive.parents[1] / "run", settings)
    assert again.archive.read_bytes() == linear.archive.read_bytes()
    assert again.client_file.read_bytes() == linear.client_file.read_bytes()
    assert again.known.read_bytes() == linear.known.read_bytes()


def test_other_tools_read_the_archive(linear: step.Packaged) -> None:
    """`check` replays golden cases encrypted; the bill of materials names the plan."""
    done = check(linear.archive)
    assert (done.golden_cases, done.threads) == (4, 1)
    bill = sbom.describe(linear.archive)
    assert {"he_plan.npz", "client.json"} <= {part["name"] for part in bill["components"]}
    assert archives.read(linear.archive).evidence["private"]["kind"] == "he"


def test_a_sealed_archive_hides_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And golden cases; the client file stays readable, since it is public."""
    key = tmp_path / "seal.key"
    key.touch(0o600)
    key.write_text("ab" * 32)
    done = packaged(tmp_path, seal=f"file:{key}")
    sealed = archives.read(done.archive).sealed
    assert sorted(sealed) == ["golden.npz.sealed", "he_plan.npz.sealed"]
    with pytest.raises(SealError):
        private_runs.loaded(done.archive, tmp_path / "extracted")
    monkeypatch.setenv("MARSHIP_SEAL_KEY", f"file:{key}")
    assert private_runs.loaded(done.archive, tmp_path / "extracted").golden_s


def test_the_signature_of_the_archive_holds_the_client_file(
    linear: step.Packaged, tmp_path: Path
) -> None:
    """A client needs NAME.mar.sig and no archive; a changed file, or another's, is refused."""
    key = make_key(tmp_path)
    trust = trusting(tmp_path / "trust", key).folder
    stranger = trusting(tmp_path / "others", make_key(tmp_path, "other")).folder
    signature.sign(linear.archive, key)
    place = tmp_path / "client"
    place.mkdir()
    own = place / linear.client_file.name
    own.write_bytes(linear.client_file.read_bytes())
    with pytest.raises(SignatureError):
        client_file.read(own, "he", trust)
    sig = signature.beside(linear.archive)
    (place / sig.name).write_bytes(sig.read_bytes())
    assert client_file.read(own, "he", trust).model == "tiny"
    with pytest.raises(SignatureError, match="must be signed with a key in"):
        client_file.read(own, "he", stranger)
    own.write_bytes(own.read_bytes().replace(b'"error": ', b'"error": 1'))
    with pytest.raises(SignatureError, match="must be the client file that was signed with tiny"):
        client_file.read(own, "he", trust)
    sig.unlink()


def test_a_stale_plan_is_refused(tmp_path: Path) -> None:
    """The model was exported anew since."""
    run = run_folder(tmp_path / "run", LINEAR)
    with pytest.raises(UsageError, match=r"must hold a plan, got no private\.json"):
        step.package(run)
    step.compile_run(run)
    contract = json.loads((run / CONTRACT_FILE).read_text())
    (run / CONTRACT_FILE).write_text(json.dumps({**contract, "digest": "0" * 64}))
    with pytest.raises(PackageError, match=r"must come from its model.onnx"):
        step.package(run)


def test_a_store_with_a_comma_is_refused(tmp_path: Path) -> None:
    """In one line, and nothing is made: torch-model-archiver would split its path there."""
    run = run_folder(tmp_path / "run", LINEAR)
    step.compile_run(run)
    store = tmp_path / "models, old"
    for pack in (step.package, package):
        with pytest.raises(UsageError, match=r"must have no comma, got .*models, old\. Name"):
            pack(run, PackageSettings(model_store=store))
    assert not store.exists()


def test_real_golden_cases_stay_out_of_the_client_file(tmp_path: Path) -> None:
    """It is public, and they are somebody's; nor are they packed unless they are asked for."""
    run = run_folder(tmp_path / "run", LINEAR, golden="real")
    step.compile_run(run)
    settings = PackageSettings(model_store=tmp_path / "store")
    with pytest.raises(PackageError, match="must be synthetic, got real"):
        step.package(run, settings)
    done = step.package(run, PackageSettings(model_store=tmp_path / "store", golden="real"))
    (case,) = read_golden(run / step.CASES_FILE)
    (real,) = case.inputs.values()
    for row in cases(done).inputs:
        assert np.abs(real - row).max(axis=1).min() > 0.05


def cases(done: step.Packaged) -> KnownCases:
    """The known cases beside a client file."""
    return KnownCases.beside(done.client_file, ClientFile.from_bytes(done.client_file.read_bytes()))


def test_the_server_does_not_have_the_known_cases(linear: step.Packaged, tmp_path: Path) -> None:
    """Else it would be right where it is tried. They are drawn anew at each export, unseeded."""
    found = cases(linear)
    assert len(found.inputs) >= 16
    wanted = found.inputs @ WEIGHTS["d"] + WEIGHTS["c"]
    assert found.outputs == pytest.approx(wanted, abs=1e-5)
    assert np.abs(found.inputs).max() > 0.1
    with zipfile.ZipFile(linear.archive) as zipped:
        data = [zipped.read(name) for name in zipped.namelist()]
        with zipped.open("golden.npz") as file, np.load(io.BytesIO(file.read())) as arrays:
            golden = np.concatenate([array for name, array in arrays.items() if "in" in name])
    for row in found.inputs:
        assert np.abs(golden - row).max(axis=1).min() > 1e-3
        for kind in ("<f4", "<f8"):
            assert not [one for one in data if row.astype(kind).tobytes() in one]
    other = cases(packaged(tmp_path))
    assert np.abs(found.inputs[:, None] - other.inputs[None]).max(axis=2).min() > 1e-3


def test_outputs_that_are_constant_do_not_keep_cases_out(tmp_path: Path) -> None:
    """Clients fill them in: they are in no ciphertext, however large."""
    weights = {**WEIGHTS, "d": WEIGHTS["d"].copy(), "c": WEIGHTS["c"].copy()}
    weights["d"][:, 1], weights["c"][1] = 0, -1e4
    run = run_folder(tmp_path / "run", LINEAR, weights=weights)
    step.compile_run(run)
    found = cases(step.package(run, PackageSettings(model_store=tmp_path / "store")))
    assert len(found.inputs) >= 16
    assert (found.outputs[:, 1] == -1e4).all()
    assert np.abs(found.outputs[:, [0, 2]]).max() < 100


def test_known_cases_stay_within_the_ring(tmp_path: Path) -> None:
    """Where drawn inputs have larger outputs than any that was seen, they are made smaller."""
    run = run_folder(tmp_path / "run", SQUARE)
    (case,) = read_golden(run / GOLDEN_FILE)
    rows = case.inputs["x"] * 0.05
    outputs = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"x": rows})[0]
    write_golden(run / GOLDEN_FILE, [GoldenCase({"x": rows}, {"y": outputs})])
    done = step.compile_run(run)
    with np.load(run / step.KNOWN_FILE) as found:
        assert len(found["inputs"]) >= 1
        assert np.abs(found["outputs"]).max() <= done.figures.largest


def test_settings_for_open_models_are_refused(tmp_path: Path) -> None:
    """A private archive has the handler that computes on ciphertexts, and no other graph."""
    with pytest.raises(UsageError, match="handler must be left out of private archives"):
        step.package(tmp_path, PackageSettings(handler=Path("mine.py")))
    with pytest.raises(UsageError, match="private must be he or mpc, got 'rot13'"):
        step.package(tmp_path, kind="rot13")


def test_a_failed_compilation_leaves_what_was_there(tmp_path: Path) -> None:
    """A plan of an earlier export stays, and nothing half-written is beside it."""
    run = run_folder(tmp_path / "run")
    step.compile_run(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    nodes = [*SQUARE[:1], private_runs.node("Relu", "h", out="s"), *SQUARE[2:]]
    private_runs.write(run / "model.onnx", nodes)
    with pytest.raises(ModelError, match="got Relu"):
        step.compile_run(run)
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"model.onnx"}


def test_a_model_that_needs_no_keys_is_refused_at_export(tmp_path: Path) -> None:
    """Its worker could not start. One input more, and there is something to rotate."""
    weights = {**WEIGHTS, "d": WEIGHTS["d"][:1]}
    run = run_folder(tmp_path / "run", LINEAR, weights=weights, inputs=1)
    with pytest.raises(ModelError, match="must sum inputs or square values") as caught:
        step.compile_run(run)
    assert "\n" not in str(caught.value)
    assert not (run / PLAN_FILE).exists()
    weights = {**WEIGHTS, "d": WEIGHTS["d"][:2]}
    run = run_folder(tmp_path / "two", LINEAR, weights=weights, inputs=2)
    assert step.compile_run(run).figures.key_bytes > 0


def test_many_inputs_and_few_outputs_are_computed(tmp_path: Path) -> None:
    """Encrypted, as they are measured at export."""
    weights = {**WEIGHTS, "d": numbers(512, OUTPUTS) / 8}
    run = run_folder(tmp_path / "run", LINEAR, weights=weights, inputs=512)
    assert step.compile_run(run).figures.error_limit < 1e-2


def test_what_has_no_plan_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    """An ONNX file cannot be exported, nor a run again that has no checkpoint."""
    run = run_folder(tmp_path / "run", LINEAR)
    with pytest.raises(UsageError, match=r"export model\.py:build .* --private mpc"):
        step.package(run / "model.onnx")
    with pytest.raises(UsageError, match="repeat the export that made it, with --private he"):
        step.package(run)
    (run / "checkpoint.pt").touch()
    with pytest.raises(UsageError, match=rf"marship export {run} --private he"):
        step.package(run)


def test_the_commands_say_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`package --private he`, as text and as JSON; `export` refuses other kinds at once."""
    run = run_folder(tmp_path / "run", LINEAR)
    step.compile_run(run)
    monkeypatch.chdir(tmp_path)
    words = ["package", str(run), "--private", "he", "--model-store", "store"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert done.output.splitlines()[-2:] == ["store/tiny.client.json", "store/tiny.known.npz"]
    done = CliRunner().invoke(app, [*words, "--json"])
    fields = json.loads(done.stdout)
    assert (fields["path"], fields["client_file"]) == ("store/tiny.mar", "store/tiny.client.json")
    for told in (True, False):  # an open archive in its place, and again
        done = CliRunner().invoke(app, ["package", str(run), "--model-store", "store"])
        assert done.exit_code == 0
        assert ("tiny.client.json is of the private model" in done.stderr) == told
        Path("store/tiny.client.json").unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["export", str(run), "--private", "rot13"])
    assert isinstance(done.exception, UsageError)
    done = CliRunner().invoke(app, ["export", str(run), "--private-from", "h"])
    assert "must come with --private he" in str(done.exception)


def test_figures_are_as_measured(tmp_path: Path) -> None:
    """Levels, ring, sizes and error of a small model."""
    figures = step.compile_run(run_folder(tmp_path / "run", LINEAR)).figures
    assert (figures.levels, figures.degree) == (1, 4096)
    assert figures.modulus_bits <= 106
    assert 0 < figures.error < 1e-2
    assert figures.error < figures.error_limit
    assert figures.noise < figures.noise_limit < 1
    assert OUTPUTS < figures.question_bytes < 50_000
