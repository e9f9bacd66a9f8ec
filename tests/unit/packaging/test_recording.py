"""Golden requests are recorded when packing, and hold a handler of one's own from then on."""

import json
import zipfile
from pathlib import Path

import pytest

from marship.contract import GOLDEN_REQUESTS_FILE
from marship.errors import LoadError, PackageError, UsageError
from marship.operate.check import check
from marship.packaging.configure import configure
from marship.packaging.step import PackageSettings, package
from marship.serving.formats import golden
from marship.trust import archive

pytestmark = pytest.mark.slow

HANDLER = """
import time, uuid

import numpy as np
import orjson

from marship.errors import InvalidInputError
from marship.serving.handler import OnnxHandler, Reply


class Own(OnnxHandler):
    def decode(self, request):
        if bytes(request.body[:1]) == b"!":
            raise InvalidInputError("a picture must not begin so, got '!'.")
        if bytes(request.body[:1]) == b"?":
            raise ZeroDivisionError("the handler's own fault")
        pixels = np.frombuffer(request.body[:3], np.uint8).astype(np.float32)[None]
        return {"input": pixels}, request.content_type

    def encode(self, outputs, state):
        value = {"kind": state, "scores": outputs["output"][0].tolist()}
        return Reply(orjson.dumps(MORE))
"""
PLAIN, SEED = "value", "value | {'seed': hash('x')}"
TOOK = "value | {'took': 1e-9 * (time.perf_counter_ns() % 100_000)}"


def pack(model: Path, folder: Path, more: str = PLAIN, **settings: object) -> Path:
    """The linear model with a handler that reads bytes, and two golden requests."""
    folder.mkdir(exist_ok=True)
    handler = folder / "own_handler.py"
    handler.write_text(HANDLER.replace("MORE", more))
    (folder / "a.png").write_bytes(b"abc")
    (folder / "b.wav").write_bytes(b"xyz")
    settings.setdefault("golden_request", (str(folder / "a.png"), str(folder / "b.wav")))
    wanted = PackageSettings(model_store=folder, name="own", handler=handler, **settings)
    return package(model, wanted)


def test_requests_and_responses_travel_in_the_archive(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, types and responses; `check` replays them; building twice gives the same bytes."""
    monkeypatch.chdir(tmp_path)
    made = pack(linear_onnx, Path("one"))
    rows = golden.read(archive.read(made).contents(GOLDEN_REQUESTS_FILE))
    assert [(row.name, row.content_type, row.body) for row in rows] == [
        ("a.png", "image/png", b"abc"),
        ("b.wav", "audio/wav", b"xyz"),
    ]
    assert json.loads(rows[0].response) == {"kind": "image/png", "scores": [592.0, 886.0]}
    done = check(made)
    assert done.golden_requests == 2
    assert pack(linear_onnx, tmp_path / "two").read_bytes() == made.read_bytes()


def test_another_handler_does_not_load(linear_onnx: Path, tmp_path: Path) -> None:
    """It answers otherwise than the one that was recorded."""
    made = pack(linear_onnx, tmp_path)
    kept = made.rename(tmp_path / "kept.mar")
    with zipfile.ZipFile(kept) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"[0].tolist()", b"[0].tolist()[::-1]"))
    with pytest.raises(LoadError, match=r"golden request a.png .* scores\[0\] of 886.0"):
        check(made)


def test_settings_stay_as_requests_were_recorded_with_them(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """Workers would not load with others; a version may change."""
    made = pack(linear_onnx, tmp_path, option=("k=1",))
    with pytest.raises(PackageError, match="Package the model again with --option"):
        configure(made, ["k=2"])
    assert configure(made, ["k=1"], "2.0").archive.version == "2.0"
    assert check(made).golden_requests == 2


@pytest.mark.parametrize(
    "more",
    ["value | {'id': uuid.uuid4().hex}", "value | {'at': time.time()}", TOOK, SEED],
    ids=["random id", "time", "duration", "seed of hashes"],
)
def test_what_a_handler_does_not_determine_is_not_recorded(
    linear_onnx: Path, tmp_path: Path, more: str
) -> None:
    """Not even where only another process gives another value; no archive is left."""
    with pytest.raises(PackageError, match=r"the same response each time, got (id|at|took|seed)"):
        pack(linear_onnx, tmp_path, more)
    assert not list(tmp_path.glob("*.mar"))


def test_a_request_that_gets_an_error_is_not_recorded(linear_onnx: Path, tmp_path: Path) -> None:
    """Its status and message are told."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"!bc")
    with pytest.raises(PackageError, match=r"got status 400: .*must not begin so"):
        pack(linear_onnx, tmp_path, golden_request=(str(bad),))


def test_a_request_that_a_handler_fails_on_shows_why(
    linear_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no server yet whose log has it: the traceback is printed."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"?bc")
    with pytest.raises(PackageError, match=r"bad.png must get a response, got status 500\. See"):
        pack(linear_onnx, tmp_path, golden_request=(str(bad),))
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ZeroDivisionError: the handler's own fault" in said


def test_files_that_are_no_requests_are_refused_before_the_proof(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """A missing one, two of one name, too many."""
    (tmp_path / "x").mkdir()
    for name in ("a.png", "x/a.png"):
        (tmp_path / name).write_bytes(b"abc")
    for files, words in (
        (["none.png"], "must be a file"),
        ([tmp_path / "a.png", tmp_path / "x" / "a.png"], "names of their own, got two a.png"),
    ):
        with pytest.raises(UsageError, match=words):
            pack(linear_onnx, tmp_path, golden_request=tuple(map(str, files)))


def test_sealed_requests_are_sealed(
    linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are data: nobody reads them without the key, and a worker with it replays them."""
    key = tmp_path / "seal.key"
    key.touch(mode=0o600)
    key.write_text(bytes(range(32)).hex())
    monkeypatch.chdir(tmp_path)
    made = pack(linear_onnx, tmp_path, seal="file:seal.key")
    assert f"{GOLDEN_REQUESTS_FILE}.sealed" in archive.read(made).sealed
    with zipfile.ZipFile(made) as zipped:
        assert GOLDEN_REQUESTS_FILE not in zipped.namelist()
        assert not any(b"image/png" in zipped.read(n) for n in zipped.namelist() if "golden" in n)
    monkeypatch.setenv("MARSHIP_SEAL_KEY", "file:seal.key")
    assert check(made).golden_requests == 2
