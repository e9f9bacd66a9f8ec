"""Archives whose texts are of other types than ours: read, or one line, at each command."""

import copy
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from marship.cli import app
from marship.contract import CONTRACT_FILE
from marship.engines.torchserve.store import check_archive
from marship.errors import MarshipError, PackageError
from marship.trust import archive, contents, signature
from marship.trust.archive import CONFIG_FILE, EVIDENCE_FILE, MANIFEST_FILE
from signed import make_key, trusting, write

pytestmark = pytest.mark.slow

MODEL = {"modelName": "lin", "modelVersion": "1.0", "handler": "h.py", "configFile": CONFIG_FILE}
METRICS = {"accuracy": 0.5, "loss": None}
TEXTS: dict[str, Any] = {
    MANIFEST_FILE: {"runtime": "python", "model": MODEL, "archiverVersion": "0.12.0"},
    CONFIG_FILE: {"minWorkers": 1, "marship": {"providers": ["cpu"]}, "handler": {"a": 1.5}},
    CONTRACT_FILE: {
        "format": 1,
        "inputs": [
            {
                "name": "x",
                "dtype": "int64",
                "shape": ["batch", 4],
                "pad_value": 0.0,
                "value_range": [0, 9],
            }
        ],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2], "pad_value": None}],
        "files": ["model.onnx"],
        "digest": "00",
        "opset": 17,
        "batch_axis": "batch",
        "bounds": {"batch": [1, None], "n": [1, 5]},
        "tolerance": {"atol": 1e-4, "rtol": 1e-3},
    },
    EVIDENCE_FILE: {
        "source": "model.onnx",
        "versions": {"numpy": "2.0"},
        "recipe": {"evidence": {"data": "some"}, "name": "lin"},
        "training": {"data_digest": "aa", "history": [{"epoch": 1}]},
        "parity": {"cases": [{"kind": "real"}], "largest_difference": {"absolute": 1e-6}},
        "optimize": {"variants": [{"name": "float32", "metrics": METRICS, "built": True}]},
        "settings": {"seed": 1},
    },
}
OTHERS: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "text", "\x1b[2J", [], ["a"], [1], [[]], {}, {"a": 1},
    {"name": 1},
]  # fmt: skip
HANDLER = b"import numpy\n\nclass Handler: pass\n"
Change = tuple[str, tuple[str | int, ...], Any]


def places(value: object, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to each value in a value."""
    yield way
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*way, key))


def changed(change: Change) -> dict[str, bytes]:
    """The files of an archive in which one value of one text is another."""
    file, way, other = change
    whole = {"": copy.deepcopy(TEXTS[file])}
    inner: Any = whole
    for key in ("", *way)[:-1]:
        inner = inner[key]
    inner[("", *way)[-1]] = other
    return {name: json.dumps(whole[""] if name == file else text).encode()
            for name, text in TEXTS.items()} | {"h.py": HANDLER}  # fmt: skip


WAYS = [(file, way) for file, text in TEXTS.items() for way in places(text)]
CHANGES = st.builds(lambda at, other: (*at, other), st.sampled_from(WAYS), st.sampled_from(OTHERS))


def pack(path: Path, change: Change) -> Path:
    """An archive with this change; `write` brings a manifest of its own, which goes first."""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in changed(change).items():
            zipped.writestr(name, data)
    return path


def outcome(call: Callable[[], object]) -> str:
    """What our own error says; any other is the test's failure."""
    try:
        call()
    except MarshipError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("file", TEXTS)
def test_each_value_of_another_type_is_read_or_refused(tmp_path: Path, file: str) -> None:
    """All of them: reading, registering and signing take it, or end in one line."""
    refused = 0
    for way in places(TEXTS[file]):
        for other in OTHERS:
            path = pack(tmp_path / "lin.mar", (file, way, other))
            told = outcome(lambda path=path: archive.read(path))
            assert not told or (file in told and "must be a" in told), (way, other)
            assert len(told.splitlines()) < 2
            refused += bool(told)
            outcome(lambda: check_archive(tmp_path, "lin.mar"))
            outcome(lambda path=path: contents.read(path))
    assert refused


def ends_well(*words: str) -> None:
    """A command leaves with 0, or with one of our own errors, which is one line."""
    done = CliRunner().invoke(app, words, catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, MarshipError), (words, done.exception)
    assert not set("\x1b\x07") & set(done.output)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CHANGES)
@example((EVIDENCE_FILE, ("training", "history"), [1, {"name": 2}]))
@example((EVIDENCE_FILE, ("optimize", "variants", 0, "metrics"), {"a": [{"name": {}}]}))
@example((CONFIG_FILE, ("handler",), [1]))
@example((MANIFEST_FILE, ("archiverVersion",), {"a": [1]}))
@example((CONTRACT_FILE, ("bounds",), {"n": [0, 10**40]}))
def test_each_command_ends_in_a_line(tmp_path: Path, change: Change) -> None:
    """inspect, inspect --json, sbom, verify and configure of an archive with one odd value."""
    path = pack(tmp_path / "lin.mar", change)
    ends_well("inspect", str(path))
    ends_well("inspect", "--json", str(path))
    ends_well("sbom", str(path))
    ends_well("configure", str(path), "a=2")
    if not (tmp_path / "trust").exists():
        key = make_key(tmp_path)
        trusting(tmp_path / "trust", key)
        signature.sign(write(tmp_path / "good.mar"), key)
    signature.beside(path).write_bytes(signature.beside(tmp_path / "good.mar").read_bytes())
    ends_well("verify", str(path), "--trust", str(tmp_path / "trust"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["payload", "payloadType", "signatures", "mediaType", "x"]),
            st.sampled_from([*OTHERS, [{"keyid": 1, "sig": 2}], [{"keyid": "a", "sig": "AA=="}]]),
        )
    ).map(dict)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_signature_of_other_types_is_reported(tmp_path: Path, value: dict[str, Any]) -> None:
    """Whatever stands beside an archive."""
    path = write(tmp_path / "lin.mar")
    if not (tmp_path / "trust").exists():
        trusting(tmp_path / "trust", make_key(tmp_path))
    signature.beside(path).write_text(json.dumps(value))
    ends_well("verify", str(path), "--trust", str(tmp_path / "trust"))


def test_an_unchanged_archive_is_read(tmp_path: Path) -> None:
    """The texts above are those of a good archive."""
    path = pack(tmp_path / "lin.mar", (EVIDENCE_FILE, ("source",), "model.onnx"))
    assert archive.read(path).evidence == TEXTS[EVIDENCE_FILE]
    check_archive(tmp_path, "lin.mar")
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exit_code == 0
    assert re.search(r"input +x: int64\[batch, 4\]", done.output)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "empty", "missing", "link in a ring"])
def test_what_is_no_file_is_reported(tmp_path: Path, kind: str) -> None:
    """A pipe that nobody writes to made inspect wait for ever."""
    path = tmp_path / "x.mar"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "empty":
        path.touch()
    elif kind == "link in a ring":
        path.symlink_to(path)
    for read in (archive.read, contents.read):
        with pytest.raises(MarshipError, match=r"x\.mar must be a"):
            read(path)


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".mar", "new\nline.mar", "half\udcff.mar", "\x1b[2J.mar"]
)
def test_a_path_of_any_name_is_reported_in_a_line(tmp_path: Path, name: str) -> None:
    """Too long for the disk, with ends of lines, undecodable, or steering the terminal."""
    words = [sys.executable, "-m", "marship", "inspect", str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_file_that_shrinks_or_grows_is_reported(tmp_path: Path) -> None:
    """What is taken out of an archive later is held against what was read of it."""
    path = pack(tmp_path / "lin.mar", (EVIDENCE_FILE, ("source",), "model.onnx"))
    found, whole = archive.read(path), path.read_bytes()
    for data in (
        whole[: len(whole) // 2],
        b"",
        whole + whole,
        whole.replace(b"Handler", b"Hanlder"),
    ):
        path.write_bytes(data)
        with pytest.raises(PackageError, match="must stay as it is"):
            found.contents("h.py")
