"""Sealed samples become plain files that other commands take; what does not open is named."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from json_page import fields
from marship.cli import app
from marship.errors import SealError, UsageError
from marship.operate.samples import INDEX_FILE, OpenedSamples, open_all
from marship.operate.tune import answers
from marship.packaging.step import PackageSettings, package
from marship.predict import sources
from marship.proof import examples
from marship.serving.formats import codec, media
from marship.serving.hosts.direct import samples
from marship.serving.hosts.direct.samples import RequestSample
from samplers import OPERATOR, sealed_files, write_key, writer
from versions import linear

JSON, NPY = "application/json", "application/x-npy"


def sample(
    body: bytes, kind: str = JSON, encoding: str = "", json_bytes: str = ""
) -> RequestSample:
    """A request to the model m."""
    return RequestSample("/predictions/m", "k=3", kind, encoding, json_bytes, body)


def keep(root: Path, *given: RequestSample, model: str = "m", version: str = "1.0") -> list[Path]:
    """Samples as a worker writes them; all there are of this version."""
    made = writer(root, model, version)
    for one in given:
        made._put(one)
    made.write()
    return sealed_files(samples.folder_of(root, model, version))


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers write when a test says so."""
    monkeypatch.setattr(samples, "_WRITE_S", 1e6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of samples."""
    return tmp_path / "samples"


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The key."""
    return write_key(tmp_path / "seal.key")


def opened(root: Path, source: str) -> OpenedSamples:
    """All samples, opened beside their folder."""
    return open_all(root, root.parent / "plain", source)


def plain(root: Path, model: str = "m", version: str = "1.0") -> dict[str, bytes]:
    """The requests among the plain files, by suffix."""
    folder = samples.folder_of(root.parent / "plain", model, version)
    return {path.suffix: path.read_bytes() for path in folder.iterdir() if path.name != INDEX_FILE}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (JSON, ".json"),
        ("application/json; charset=utf-8", ".json"),
        ("application/x+json", ".json"),
        ("image/jpeg", ".jpg"),
        ("audio/ogg", ".oga"),
        ("", ".json"),
        ("application/x-www-form-urlencoded", ".json"),
        ("what/ever", ".bin"),
    ],
)
def test_a_file_has_the_suffix_of_its_type(root: Path, source: str, kind: str, suffix: str) -> None:
    """By which commands find the type again; only its owner can read it."""
    keep(root, sample(b"[[1,2,3]]", kind))
    (one,) = opened(root, source).versions
    assert plain(root) == {suffix: b"[[1,2,3]]"}
    assert (one.name, one.version, one.files) == ("m", "1.0", 1)
    files = list(one.folder.iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize(
    "kind",
    [JSON, NPY, "image/jpeg", "image/png", "image/webp", "audio/wav", "audio/flac", "text/plain"],
)
def test_commands_find_the_type_again(kind: str) -> None:
    """By the suffix."""
    assert media.media_type(Path(f"x{media.suffix_of(kind, b'')}")) == kind


def test_a_request_is_written_as_its_model_read_it(root: Path, source: str) -> None:
    """Without encodings, out of its form; what else it had is in the index."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n3\r\n'
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n\x89PNG\r\n--x--\r\n"
    )
    packed = gzip.compress(b"[1]")
    keep(root, sample(form, "multipart/form-data; boundary=x"), sample(packed, encoding="gzip"))
    (one,) = opened(root, source).versions
    assert plain(root) == {".png": b"\x89PNG", ".json": b"[1]"}
    rows = [json.loads(row) for row in (one.folder / INDEX_FILE).read_text().splitlines()]
    assert {Path(row["file"]).suffix: row["fields"] for row in rows} == {
        ".png": {"k": "3"},
        ".json": {},
    }
    assert {(row["path"], row["query"]) for row in rows} == {("/predictions/m", "k=3")}


def test_raw_tensors_become_json(root: Path, source: str) -> None:
    """As the gateway for gRPC sends them: all types, texts and bfloat16 too."""
    texts = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    arrays = {
        "f": ("FP32", [1, 2], np.array([1.5, -2], "<f4").tobytes()),
        "h": ("FP16", [1], np.array([0.5], "<f2").tobytes()),
        "b": ("BF16", [1], struct.pack("<H", 0x3F80)),
        "i": ("INT64", [2, 1], np.array([[1], [2]], "<i8").tobytes()),
        "s": ("BYTES", [2], texts),
    }
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for name, (kind, shape, raw) in arrays.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    body = head + b"".join(raw for _, _, raw in arrays.values())
    keep(root, sample(body, "application/octet-stream", json_bytes=str(len(head))))
    wrong = [(body, "9999999"), (b"[1]", "3"), (b'{"inputs":[{}]}', "15"), (b"\xff[]", "2")]
    keep(root, *(sample(one, "", json_bytes=length) for one, length in wrong))
    done = opened(root, source)
    assert json.loads(plain(root)[".json"]) == {
        "f": [[1.5, -2]], "h": [0.5], "b": [1], "i": [[1], [2]], "s": ["ab", ""],
    }  # fmt: skip
    assert len(done.refused) == 4
    assert all("must hold a request that can be read" in why for why in done.refused.values())


DAMAGE = {
    "a bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "its head": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "its end": lambda data: data[:-7],
    "more": lambda data: data + b"x",
    "nothing left": lambda _: b"",
    "another format": lambda data: b"plain" + data,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_altered_file_is_named_and_the_others_are_opened(
    root: Path, source: str, damage: str
) -> None:
    """In one line without advice for archives."""
    first, _ = keep(root, sample(b"[1]"), sample(b"[2]"))
    first.write_bytes(DAMAGE[damage](first.read_bytes()))
    done = opened(root, source)
    assert list(done.refused) == [first]
    (reason,) = done.refused.values()
    assert str(first) in reason
    assert "archive" not in reason
    assert "\n" not in reason
    assert [one.files for one in done.versions] == [1]


def test_a_file_of_another_model_is_refused(root: Path, source: str) -> None:
    """And one of another version, wherever it lies."""
    (mine,), (other,) = keep(root, sample(b"[1]")), keep(root, sample(b"[2]"), model="n")
    (newer,) = keep(root, sample(b"[3]"), version="2.0")
    moved = [one.rename(mine.parent / one.name) for one in (other, newer)]
    done = opened(root, source)
    assert set(done.refused) == set(moved)
    assert all("for this model, version and place" in reason for reason in done.refused.values())
    assert plain(root) == {".json": b"[1]"}


def test_with_another_key_nothing_is_written(root: Path, tmp_path: Path) -> None:
    """Each file is refused, and there is no folder for it."""
    keep(root, sample(b"[1]"))
    done = opened(root, write_key(tmp_path / "other.key", bytes(32)))
    assert not done.versions
    assert ["must be opened with the key" in reason for reason in done.refused.values()] == [True]
    assert list((tmp_path / "plain").iterdir()) == []
    with pytest.raises(SealError, match="must be a file with a key"):
        opened(root, f"file:{tmp_path / 'none'}")


def test_names_that_are_no_names_of_folders(root: Path, source: str) -> None:
    """Come back as they were."""
    keep(root, sample(b"[1]"), model="../a b", version="..")
    (one,) = opened(root, source).versions
    assert (one.name, one.version) == ("../a b", "..")
    assert one.folder.resolve().is_relative_to((root.parent / "plain").resolve())


def test_a_part_of_the_folder_can_be_opened(
    root: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version's alone, from within it, too; twice gives the same."""
    keep(root, sample(b"[1]"))
    keep(root, sample(b"[2]"), version="2.0")
    monkeypatch.chdir(root / "m" / "1.0")
    for _ in range(2):
        (one,) = open_all(Path(), root.parent / "plain", source).versions
        assert (one.name, one.version, one.files) == ("m", "1.0", 1)
    assert plain(root) == {".json": b"[1]"}


@pytest.mark.parametrize("place", [".", "m/plain"])
def test_plain_files_never_lie_among_sealed_ones(root: Path, source: str, place: str) -> None:
    """Nor is a folder taken that has no samples, nor anything opened without a key."""
    with pytest.raises(UsageError, match="must hold samples"):
        opened(root, source)
    keep(root, sample(b"[1]"))
    with pytest.raises(UsageError, match="must lie outside"):
        open_all(root, root / place, source)
    with pytest.raises(UsageError, match="must lie outside"):
        open_all(root / "m", root / "plain", source)
    with pytest.raises(UsageError, match="--seal-key"):
        open_all(root, root.parent / "plain")


def test_the_command_tells_what_did_not_open(root: Path, source: str) -> None:
    """With exit code 1, and as JSON."""
    first, _ = keep(root, sample(b"[1]"), sample(b"[2]"))
    words = ["samples", str(root), "--seal-key", source, "--out", str(root.parent / "plain")]
    whole = CliRunner().invoke(app, words)
    assert whole.exit_code == 0, whole.output
    first.write_bytes(b"")
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1
    assert str(first) in told.stderr
    found = fields(json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout), "samples")
    assert [one["path"] for one in found["refused"]] == [str(first)]
    assert [one["files"] for one in found["versions"]] == [1]


def test_a_wrong_key_is_told_once(root: Path, tmp_path: Path) -> None:
    """In one line for all files, and not in one for each."""
    keep(root, *(sample(b"[1]") for _ in range(30)))
    key = write_key(tmp_path / "other.key", bytes(32))
    words = ["samples", str(root), "--seal-key", key, "--out", str(tmp_path / "plain")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1
    (line,) = told.stderr.splitlines()
    assert "must be opened with the key" in line
    assert line.endswith("(and 29 other files likewise)")


def test_plain_files_are_calibration_data_examples_and_requests(
    root: Path, source: str, tmp_path: Path
) -> None:
    """Of all forms: for `optimize --calibration`, `package --example`, `predict` and `tune`."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    bodies = [
        [[1, 2, 3]], {"input": [[1, 2, 3]]}, {"instances": [[1, 2, 3]]}, {"inputs": [tensor]},
    ]  # fmt: skip
    keep(root, *(sample(json.dumps(body).encode()) for body in bodies))
    (one,) = opened(root, source).versions
    model = linear(tmp_path / "lin.onnx", 1)
    assert onnx.load(model).graph.input[0].name == "input"
    mar = package(model, PackageSettings(model_store=tmp_path, example=one.folder))
    assert mar.is_file()
    from marship.trust import archive

    contract = archive.read(mar).contract
    assert contract is not None
    found = examples.given(one.folder, contract)
    assert len(found) == 4
    assert all(np.array_equal(each["input"], [[1, 2, 3]]) for each in found)
    listed = sources.find([str(one.folder)]).sources
    assert {each.kind for each in listed} == {codec.JSON_TYPE}
    assert len(listed) == 4
    asked = answers.read(one.folder)
    assert sorted(each.body for each in asked) == sorted(json.dumps(b).encode() for b in bodies)
    assert OPERATOR not in b"".join(path.read_bytes() for path in sealed_files(root))
