"""A model of transformers, from its folder to TorchServe: texts in, labels out, joined."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import transformers

from marship import Client, ExportSettings, PackageSettings, export, package
from marship.engines.torchserve.server import Server
from marship.errors import RequestError
from marship.operate import check
from marship.predict import Run, predict_files, sources
from posting import endpoint
from pretrained_folders import byte_pairs, write_texts

TEXTS = ["The film was wonderful", "No", "Anna Schmidt moved to Lisbon, and nobody knew.", ""] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RoBERTa, whose positions depend on padding."""
    head = "ForSequenceClassification"
    return write_texts(tmp_path_factory.mktemp("hf"), "Roberta", head, byte_pairs, num_labels=3)


@pytest.fixture(scope="module")
def served(folder: Path, store: Path, client: Client) -> Client:
    """The model, registered with batches."""
    run_dir = folder.parent / "opinion"
    export(f"hf:{folder}", ExportSettings(proof_seconds=1.0), out=run_dir)
    archive = package(run_dir, PackageSettings(model_store=store, profile="throughput"))
    assert check.check(archive).golden_requests == 1
    client.register(archive.name)
    return client


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[dict[str, Any]]:
    """What `pipeline()` gives for each text alone."""
    pipeline: Any = transformers.pipeline
    call = pipeline("text-classification", model=str(folder), device="cpu")
    return [call(text)[0] for text in TEXTS]


def close(got: Any, want: Any) -> bool:
    """The same labels, and scores within rounding."""
    labels = [row["label"] for row in got] == [row["label"] for row in want]
    scores = [[row["score"] for row in rows] for rows in (got, want)]
    return labels and np.allclose(*scores, rtol=1e-3, atol=1e-4)


def test_texts_of_many_clients_get_what_the_pipeline_gives(
    served: Client, wanted: list[dict[str, Any]]
) -> None:
    """Joined by the server, in a list, and alone."""
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        got = list(pool.map(lambda text: served.predict("opinion", {"text": text}), TEXTS))
    assert close(got, wanted)
    assert close(served.predict("opinion", {"text": TEXTS}), wanted)
    with pytest.raises(RequestError, match="text must have from 1 to 128 tokens, got"):
        served.predict("opinion", {"text": "no " * 200})


def test_a_plain_text_is_answered(
    served: Client,  # noqa: ARG001  the model is registered
    running: Server,
    wanted: list[dict[str, Any]],
) -> None:
    """As curl sends a file with `-H "Content-Type: text/plain"`."""
    url, headers = endpoint(running, "opinion")
    headers = headers | {"Content-Type": "text/plain"}
    reply = requests.post(url, TEXTS[0].encode(), headers=headers, timeout=30)
    assert close([reply.json()], wanted[:1])


def test_a_folder_of_texts_is_predicted(
    served: Client, running: Server, wanted: list[dict[str, Any]], tmp_path: Path
) -> None:
    """`marship predict opinion FOLDER`: a row for each file, with label and score."""
    (tmp_path / "in").mkdir()
    for number, text in enumerate(TEXTS[:3]):
        (tmp_path / "in" / f"{number}.txt").write_text(text)
    found = sources.find([str(tmp_path / "in")]).sources
    out = tmp_path / "rows.csv"
    from marship.client.address import Address

    predict_files(Run("opinion", found, out), Address(home=running.home.path))
    assert served.describe("opinion")
    with out.open(newline="") as file:
        rows = [{**row, "score": float(row["score"])} for row in csv.DictReader(file)]
    assert close(sorted(rows, key=lambda row: row["file"]), wanted[:3])
