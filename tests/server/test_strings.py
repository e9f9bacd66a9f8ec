"""Models with text in and out, packed from ONNX files and served by TorchServe."""

import csv
import io
import json
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import requests

from marship import Client, PackageSettings, package
from marship.client.address import Address
from marship.engines.torchserve.server import Server
from marship.errors import RequestError
from marship.operate.replay import replay
from marship.predict import Run, predict_files
from marship.predict.sources import find
from marship.serving.formats.codec import JSON_TYPE, NPY_TYPE, OCTETS_TYPE
from marship.trust import archive
from models import labels, same_text
from posting import endpoint

WORDS = ["", "red", "grün", "a\0b\0", "𝄞 \U0010ffff", "x" * 100_000, "line\nend", "Z"]


@pytest.fixture(scope="module")
def served(store: Path, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Both models, registered with batches."""
    folder = tmp_path_factory.mktemp("text")
    for name, made in (("labels", labels), ("same-text", same_text)):
        settings = PackageSettings(model_store=store, name=name, profile="throughput")
        client.register(package(made(folder / f"{name}.onnx"), settings).name)
    return client


def test_golden_cases_with_text_are_replayed(served: Client, store: Path) -> None:
    """By the worker as it loads, and through the endpoint."""
    for name in ("labels", "same-text"):
        found = archive.read(store / f"{name}.mar")
        assert found.contract is not None
        assert found.contract.batch_axis == "n"
        assert replay(served, found, name).replayed == 3


def test_json_in_and_out(served: Client) -> None:
    """Named and bare, several requests at a time."""
    rows = [[word] for word in WORDS]
    assert served.predict("same-text", rows) == rows
    ask = {"word": [["red"], ["grün"], ["blue"]], "mark": [["!"], [""], ["\0"]]}
    want = {"upper": ["RED", "GRÜN", "BLUE"], "joined": [["red!"], ["grün"], ["blue\0"]]}
    assert served.predict("labels", ask) == want | {"number": [[1], [2], [-1]]}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda word: served.predict("same-text", [[word]]), WORDS * 4))
    assert found == [[[word]] for word in WORDS * 4]


def raw(words: list[str]) -> bytes:
    """KServe's BYTES: each string after its length."""
    texts = [word.encode() for word in words]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("is_raw", [False, True])
def test_kserve_bytes(running: Server, *, is_raw: bool) -> None:
    """As JSON and as raw tensors, in and out."""
    shape = [len(WORDS), 1]
    entry: dict[str, Any] = {"name": "x", "datatype": "BYTES", "shape": shape}
    tail = raw(WORDS) if is_raw else b""
    entry |= {"parameters": {"binary_data_size": len(tail)}} if is_raw else {"data": WORDS}
    ask = {"inputs": [entry], "parameters": {"binary_data_output": is_raw}}
    head = orjson.dumps(ask)
    url, headers = endpoint(running, "same-text")
    more = {"Inference-Header-Content-Length": str(len(head))} if is_raw else {}
    kind = {"Content-Type": OCTETS_TYPE if is_raw else JSON_TYPE}
    response = requests.post(url, head + tail, headers=headers | more | kind, timeout=60)
    body = response.content
    assert response.status_code == 200, body
    length = int(response.headers["Inference-Header-Content-Length"]) if is_raw else len(body)
    (output,) = orjson.loads(body[:length])["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", shape)
    assert body[length:] == tail if is_raw else output["data"] == WORDS


@pytest.mark.parametrize("kind", ["U", "S"])
def test_npy(served: Client, kind: str) -> None:
    """Text and UTF-8 bytes of fixed width; the response is text."""
    words = [word for word in WORDS if not word.endswith("\0")]
    array = np.array([[word] for word in words])
    file = io.BytesIO()
    np.save(file, array if kind == "U" else np.char.encode(array, "utf-8"))
    found = served.predict("same-text", file.getvalue(), content_type=NPY_TYPE)
    assert found.tolist() == array.tolist()


def test_files_of_text_become_rows(served: Client, running: Server, tmp_path: Path) -> None:
    """`predict` over JSON and npy: cells and lines have each word unchanged, and are resumed."""
    del served
    folder = tmp_path / "words"
    folder.mkdir()
    hostile = ["=cmd|' /C calc'!A0", "cr\rx", "crlf\r\n", "a;b", "a,b", '"q"', "\u2028", " a "]
    wanted = {}
    for number, word in enumerate([*WORDS, *hostile]):
        wanted[f"{number:02}.json"] = [[word]]
        (folder / f"{number:02}.json").write_bytes(orjson.dumps([[word]]))
    np.save(folder / "two.npy", np.array([["grün"], ["b"]]))
    wanted["two.npy"] = [["grün"], ["b"]]
    address = Address(home=running.home.path)
    for name in ("rows.csv", "rows.jsonl"):
        sources = find([str(folder)]).sources
        run = Run("same-text", sources, tmp_path / name)
        assert predict_files(run, address).predicted == len(wanted)
        again = predict_files(run, address)
        assert (again.sent, again.predicted_before) == (0, len(wanted))
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as table:
        csv.field_size_limit(sys.maxsize)
        rows = [(row["file"], json.loads(row["answer"])) for row in csv.DictReader(table)]
    lines = map(orjson.loads, (tmp_path / "rows.jsonl").read_bytes().splitlines())
    for found in (dict(rows), {line["file"]: line["answer"] for line in lines}):
        assert {Path(file).name: answer for file, answer in found.items()} == wanted


def test_labels_of_files_stand_in_columns(served: Client, running: Server, tmp_path: Path) -> None:
    """A column for each output; several rows of a request in one cell."""
    del served
    ask = {"word": [["red"], ["grün"]], "mark": [["!"], [";"]]}
    (tmp_path / "a.json").write_bytes(orjson.dumps(ask))
    run = Run("labels", find([str(tmp_path / "a.json")]).sources, tmp_path / "rows.csv")
    assert predict_files(run, Address(home=running.home.path)).predicted == 1
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as table:
        (row,) = csv.DictReader(table)
    assert (row["upper"], json.loads(row["joined"])) == ("RED;GRÜN", [["red!"], ["grün;"]])


def test_what_is_no_text_is_refused(served: Client) -> None:
    """Numbers, uneven lists, another shape."""
    for value in ([[1]], [["a"], ["b", "c"]], ["a"], [[None]]):
        with pytest.raises(RequestError, match="x must"):
            served.predict("same-text", value)
