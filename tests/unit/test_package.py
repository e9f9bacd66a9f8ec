"""Archives are self-contained, repeatable, and tell where they come from."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from marship import archive
from marship.contract import read_golden
from marship.errors import ModelError, PackageError, UsageError
from marship.package import PackageSettings, package


def pack(source: Path, store: Path, **settings: object) -> Path:
    """Package with the model store given."""
    return package(source, PackageSettings(model_store=store, **settings))  # type: ignore[arg-type]


def test_building_twice_gives_the_same_bytes(linear_onnx: Path, tmp_path: Path) -> None:
    """Nothing in an archive depends on when or where it was built."""
    first, second = (pack(linear_onnx, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_archives_built_at_the_same_time_do_not_meet(linear_onnx: Path, tmp_path: Path) -> None:
    """The archiver's shared staging folder is private to each build, even under one name."""
    with ProcessPoolExecutor(2) as pool:
        built = [pool.submit(pack, linear_onnx, tmp_path / str(i), name="x") for i in range(4)]
        assert len({future.result().read_bytes() for future in built}) == 1


def test_a_bare_onnx_file_needs_no_recipe(linear_onnx: Path, tmp_path: Path) -> None:
    """The archive holds handler, serving copy, model, contract, golden cases and settings."""
    read = archive.read(pack(linear_onnx, tmp_path, name="lin", version="2.1", batch_size=4))
    assert (read.name, read.version) == ("lin", "2.1")
    assert read.manifest["model"]["handler"] == "onnx_handler.py"
    names = {member.name for member in read.members}
    assert {
        "MAR-INF/MANIFEST.json",
        "contract.json",
        "evidence.json",
        "golden.npz",
        "marship/__init__.py",
        "marship/contract.py",
        "marship/errors.py",
        "marship/serving/handler.py",
        "model-config.yaml",
        "model.onnx",
        "onnx_handler.py",
    } <= names
    assert read.config["batchSize"] == 4
    assert read.config["responseTimeout"] == 60
    assert read.config["startupTimeout"] == 120
    assert read.contract is not None
    assert read.contract.batch_axis == "batch"
    assert read.contract.digest == hashlib.sha256(linear_onnx.read_bytes()).hexdigest()
    assert read.evidence["versions"]["onnxruntime"]
    assert read.evidence["source"] == linear_onnx.name


def test_versions_lie_side_by_side_where_that_is_asked_for(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """The file's name has the version, the model's has not; without it a version replaces one."""
    first = pack(linear_onnx, tmp_path, name="lin", version="1.0", versioned=True)
    second = pack(linear_onnx, tmp_path, name="lin", version="2.0", versioned=True)
    assert sorted(path.name for path in tmp_path.glob("*.mar")) == ["lin-1.0.mar", "lin-2.0.mar"]
    found = [archive.read(path) for path in (first, second)]
    assert [(a.name, a.version) for a in found] == [("lin", "1.0"), ("lin", "2.0")]
    plain = [pack(linear_onnx, tmp_path, name="lin", version=v) for v in ("1.0", "2.0")]
    assert plain[0] == plain[1] == tmp_path / "lin.mar"


def test_golden_outputs_are_the_models_own(linear_onnx: Path, tmp_path: Path) -> None:
    """What the file answered at packaging time is what a worker must answer."""
    with zipfile.ZipFile(pack(linear_onnx, tmp_path)) as zipped:
        zipped.extract("golden.npz", tmp_path)
    cases = read_golden(tmp_path / "golden.npz")
    assert len(cases) > 1
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    for case in cases:
        np.testing.assert_allclose(case.outputs["output"], case.inputs["input"] @ weights, 1e-5)


def test_an_archive_runs_where_marship_is_not_installed(linear_onnx: Path, tmp_path: Path) -> None:
    """With the archive's folder first on the path, its own copy of marship serves the model."""
    mar = pack(linear_onnx, tmp_path)
    folder = tmp_path / "extracted"
    with zipfile.ZipFile(mar) as zipped:
        zipped.extractall(folder)
    other = tmp_path / "site" / "marship"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the wrong marship')")
    code = (
        "import sys, pathlib, marship.serving.session as s, marship.contract as c\n"
        "f = pathlib.Path(sys.argv[1])\n"
        "contract = c.Contract.from_json((f / 'contract.json').read_bytes())\n"
        "session = s.Session(f, contract, s.SessionSettings())\n"
        "session.replay_golden(f / 'golden.npz')\n"
        "print(s.__file__)"
    )
    path = f"{folder}:{tmp_path / 'site'}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(folder / "marship/serving/session.py"), done.stderr


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({}, (1, 1)),
        ({"profile": "latency"}, (1, 1)),
        ({"profile": "throughput"}, (32, 1)),
        ({"profile": "throughput", "batch_size": 8, "max_batch_delay_ms": 5}, (8, 5)),
    ],
)
def test_a_profile_sets_the_batch_and_a_number_wins(
    linear_onnx: Path, tmp_path: Path, settings: dict[str, object], batch: tuple[int, int]
) -> None:
    """The latency profile answers one by one, throughput in batches of 32 within 1 ms."""
    config = archive.read(pack(linear_onnx, tmp_path, **settings)).config
    assert (config["batchSize"], config["maxBatchDelay"]) == batch
    assert config["marship"]["profile"] == settings.get("profile", "latency")


BAD_SETTINGS = [
    ({"profile": "fast"}, "profile must be one of latency, throughput, got 'fast'"),
    ({"name": "../up"}, "name must be"),
    ({"version": "latest"}, "version must be"),
    ({"min_workers": 2}, "max-workers must be"),
    ({"handler": Path("absent.py")}, r"absent\.py must be a file"),
    ({"asset": ("absent.json",)}, r"absent\.json must be a file"),
]


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS)
def test_bad_settings_are_named(
    linear_onnx: Path, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    """What cannot be meant is refused before anything is written."""
    with pytest.raises(UsageError, match=words):
        pack(linear_onnx, tmp_path / "store", **settings)
    assert not list((tmp_path / "store").glob("*")) if (tmp_path / "store").exists() else True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class A: ...\nclass B: ...\n", "must define one class, .* got A, B"),
        ("x = 1\n", "must define one class, .* got none"),
        ("class A:\n", "must be Python"),
    ],
)
def test_a_handler_that_torchserve_would_refuse_is_refused_here(
    linear_onnx: Path, tmp_path: Path, text: str, words: str
) -> None:
    """Two classes, none, or a syntax error are named before a worker dies of them."""
    handler = tmp_path / "own_handler.py"
    handler.write_text(text)
    with pytest.raises(UsageError, match=words):
        pack(linear_onnx, tmp_path / "store", handler=handler)


def test_a_handler_may_be_a_function(linear_onnx: Path, tmp_path: Path) -> None:
    """A file with a function `handle` may define as many classes as it likes."""
    handler = tmp_path / "own_handler.py"
    handler.write_text("class A: ...\nclass B: ...\ndef handle(data, context): ...\n")
    assert pack(linear_onnx, tmp_path / "store", handler=handler).is_file()


def test_an_asset_cannot_replace_a_part_of_the_archive(linear_onnx: Path, tmp_path: Path) -> None:
    """An asset named like the contract is refused."""
    asset = tmp_path / "model.onnx"
    asset.write_text("{}")
    with pytest.raises(UsageError, match=r"model\.onnx must be named otherwise"):
        pack(linear_onnx, tmp_path / "store", asset=(str(asset),))


def test_a_failed_build_keeps_the_archive_before_it(linear_onnx: Path, tmp_path: Path) -> None:
    """A build that fails half-way leaves the old archive and no scrap beside it."""
    before = pack(linear_onnx, tmp_path, name="x").read_bytes()
    with pytest.raises(UsageError):
        pack(linear_onnx, tmp_path, name="x", asset=("absent",))
    assert [path.name for path in tmp_path.iterdir()] == ["x.mar"]
    assert (tmp_path / "x.mar").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x0a"])
def test_a_damaged_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no ONNX model is named, in one line."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx must be a valid ONNX model"):
        pack(path, tmp_path)


def test_missing_sources_are_usage_errors(tmp_path: Path) -> None:
    """A path that is not there, and a folder that no recipe wrote, say so."""
    with pytest.raises(UsageError, match="no such file"):
        pack(tmp_path / "absent.onnx", tmp_path)
    with pytest.raises(UsageError, match=r"recipe\.json"):
        pack(tmp_path, tmp_path)


def test_the_archiver_leaves_the_temp_folder_alone(linear_onnx: Path, tmp_path: Path) -> None:
    """A model named like a folder in the temp folder does not delete it."""
    bystander = Path(tempfile.gettempdir()) / "bystander"
    bystander.mkdir(exist_ok=True)
    try:
        pack(linear_onnx, tmp_path, name="bystander")
        assert bystander.is_dir()
    finally:
        shutil.rmtree(bystander, ignore_errors=True)


def test_a_damaged_archive_is_refused(linear_onnx: Path, tmp_path: Path) -> None:
    """A flipped byte, a cut tail, a foreign zip: each is named when it is read."""
    mar = pack(linear_onnx, tmp_path)
    whole = mar.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    for content in (bytes(flipped), whole[:-100], b"", b"hello"):
        mar.write_bytes(content)
        with pytest.raises(PackageError, match=r"linear\.mar must be an "):
            archive.read(mar)
    with zipfile.ZipFile(mar, "w") as foreign:
        foreign.writestr("a", "b")
    with pytest.raises(PackageError, match="of torch-model-archiver"):
        archive.read(mar)
