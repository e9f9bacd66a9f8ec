"""Folders in Hugging Face's layout: `onnx/model.onnx` beside a tokenizer or an image processor."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

import marship
from marship.errors import UsageError
from marship.operate import check
from marship.packaging import onnx_folder
from marship.trust import archive
from pretrained_folders import byte_pairs, word_pieces, write_pictures, write_texts

QUICK = marship.ExportSettings(proof_seconds=0.5)
HEAD = "ForSequenceClassification"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three folders of transformers, and the graphs of each."""
    place = tmp_path_factory.mktemp("parts")
    write_texts(place / "states", "Bert", "Model", word_pieces)
    write_texts(place / "opinion", "Roberta", HEAD, byte_pairs, num_labels=2)
    write_pictures(place / "photo", num_labels=4)
    for name in ("states", "opinion", "photo"):
        marship.export(f"hf:{place / name}", QUICK, out=place / f"{name}-run")
    return place


def laid_out(parts: Path, name: str, folder: Path, *graphs: str) -> Path:
    """A folder without PyTorch's weights, with the graph at some paths."""
    shutil.copytree(parts / name, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in graphs:
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(parts / f"{name}-run" / "model.onnx", folder / path)
    return folder


def packed(folder: Path, store: Path, **settings: object) -> Path:
    """The archive of a folder."""
    return marship.package(
        folder, marship.PackageSettings(model_store=store, proof_seconds=2.0, **settings)
    )


@pytest.mark.parametrize("graph", ["onnx/model.onnx", "model.onnx"])
def test_texts_get_what_the_exported_model_gives(graph: str, parts: Path, tmp_path: Path) -> None:
    """In a subfolder or a flat folder; texts of different lengths may share a call."""
    folder = laid_out(parts, "opinion", tmp_path / "opinion", graph)
    found = packed(folder, tmp_path)
    contract = archive.read(found).contract
    assert contract is not None
    assert contract.bounds["length"] == (1, 128)
    assert [spec.pad_value for spec in contract.inputs] == [1, 0]
    exported = packed(parts / "opinion-run", tmp_path / "run", name="opinion")
    request = parts / "opinion-run" / "sample_texts.json"
    got, want = (check.check(path, request).response for path in (found, exported))
    assert got is not None
    assert want is not None
    assert got.status == 200
    for one, other in zip(json.loads(got.body), json.loads(want.body), strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_all_inputs_of_a_text_have_one_length(parts: Path, tmp_path: Path) -> None:
    """Also where a mask of one token would do for all of them."""
    folder = laid_out(parts, "states", tmp_path / "states", "onnx/model.onnx")
    contract = archive.read(packed(folder, tmp_path)).contract
    assert contract is not None
    assert {spec.shape for spec in contract.inputs} == {("batch", "length")}
    assert contract.outputs[0].shape == ("batch", "length", 16)


def test_a_picture_gets_labels(parts: Path, tmp_path: Path) -> None:
    """And its samples are golden requests."""
    folder = laid_out(parts, "photo", tmp_path / "photo", "onnx/model.onnx")
    found = packed(folder, tmp_path)
    done = check.check(found, parts / "photo-run" / "sample_wide.png")
    assert done.golden_requests == 2
    assert done.response is not None
    assert len(json.loads(done.response.body)["top"]) == 4


def test_a_variant_is_chosen_by_its_name(tmp_path: Path) -> None:
    """model.onnx is taken without one; where it is not there, the variants are listed."""
    (tmp_path / "onnx").mkdir()
    for name in ("model_quantized", "model_fp16"):
        (tmp_path / "onnx" / f"{name}.onnx").touch()
    assert onnx_folder.graph_of(tmp_path, "fp16").name == "model_fp16.onnx"
    with pytest.raises(UsageError, match="variant must be one of fp16, quantized, got None"):
        onnx_folder.graph_of(tmp_path, None)
    (tmp_path / "onnx" / "model.onnx").touch()
    assert onnx_folder.graph_of(tmp_path, None).name == "model.onnx"
    with pytest.raises(UsageError, match="got int4"):
        onnx_folder.graph_of(tmp_path, "int4")


def test_parts_of_a_model_are_refused_by_their_names(tmp_path: Path) -> None:
    """An encoder and a decoder run one after the other."""
    for name in ("vision_encoder", "prompt_decoder"):
        (tmp_path / f"{name}.onnx").touch()
    with pytest.raises(UsageError, match=r"got prompt_decoder\.onnx, vision_encoder\.onnx: parts"):
        packed(tmp_path, tmp_path)


def test_a_folder_without_a_configuration_is_refused(parts: Path, tmp_path: Path) -> None:
    """With the command that packages the graph for tensors."""
    shutil.copyfile(parts / "photo-run" / "model.onnx", tmp_path / "model.onnx")
    with pytest.raises(
        UsageError, match=r"must hold config\.json .* marship package .*model\.onnx"
    ):
        packed(tmp_path, tmp_path)


def test_a_graph_of_a_fixed_length_is_refused(parts: Path, tmp_path: Path) -> None:
    """No text would have so many tokens."""
    folder = laid_out(parts, "opinion", tmp_path / "fixed", "model.onnx")
    model = onnx.load(folder / "model.onnx")
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UsageError, match="any length, got a graph for 8 tokens"):
        packed(folder, tmp_path)
