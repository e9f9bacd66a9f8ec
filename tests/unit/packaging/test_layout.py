"""What is decided about an ONNX file of a folder before it is run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import marship
from marship.errors import ModelError, UsageError
from marship.packaging import graphs, onnx_folder
from marship.proof import graph, onnx_proof
from marship.storage import write_json
from pretrained_folders import byte_pairs, write_texts

LABELS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a classifier without its weights."""
    folder = tmp_path_factory.mktemp("source") / "hf"
    write_texts(folder, "Roberta", "ForSequenceClassification", byte_pairs, num_labels=LABELS)
    (folder / "model.safetensors").unlink()
    return folder


def write_graph(
    path: Path, outputs: Mapping[str, int | str], dtype: int = TensorProto.INT64
) -> None:
    """A graph that takes tokens; what its outputs hold does not matter."""
    axes = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(n, dtype, axes) for n in onnx_folder_inputs()]
    given = [helper.make_tensor_value_info(n, 1, ["batch", size]) for n, size in outputs.items()]
    weights = numpy_helper.from_array(np.ones((1, LABELS), np.float32), "weights")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axis"], ["sum"], keepdims=1),
        *(helper.make_node("MatMul", ["sum", "weights"], [name]) for name in outputs),
    ]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    made = helper.make_graph(nodes, "g", inputs, given, [weights, axis])
    path.parent.mkdir(exist_ok=True)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path
    )


def onnx_folder_inputs() -> tuple[str, str]:
    """What RoBERTa's tokenizer makes."""
    return "input_ids", "attention_mask"


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """The classifier's folder, for a graph."""
    return shutil.copytree(source, tmp_path / "model")


def planned(folder: Path, draft: Path) -> dict[str, object]:
    """What text.json says of the folder's graph."""
    draft.mkdir()
    onnx_folder.planned(folder, draft, marship.PackageSettings())
    found: dict[str, object] = json.loads((draft / "text.json").read_text())
    return found


def test_logits_are_served_wherever_they_stand(folder: Path, tmp_path: Path) -> None:
    """Another output before them is left alone; one without them must be the only one."""
    graph_file = folder / "onnx" / "model.onnx"
    write_graph(graph_file, {"attentions": LABELS, "logits": LABELS})
    assert planned(folder, tmp_path / "a")["output"] == "logits"
    write_graph(graph_file, {"Identity": LABELS})
    assert planned(folder, tmp_path / "b")["output"] == "Identity"
    write_graph(graph_file, {"attentions": LABELS, "scores": LABELS})
    with pytest.raises(UsageError, match="or one alone, got attentions, scores"):
        planned(folder, tmp_path / "c")
    write_graph(graph_file, {"last_hidden_state": 16, "logits": LABELS})
    assert planned(folder, tmp_path / "d")["task"] == "text-classification"


@pytest.mark.parametrize("count", [2, 4])
def test_each_value_of_the_logits_has_a_label(folder: Path, tmp_path: Path, count: int) -> None:
    """Refused with both numbers where there are fewer or more."""
    write_graph(folder / "model.onnx", {"logits": LABELS})
    config = json.loads((folder / "config.json").read_text())
    names = {str(place): f"label {place}" for place in range(count)}
    write_json(folder / "config.json", config | {"id2label": names})
    with pytest.raises(UsageError, match=f"each of the 3 values of logits, got {count}"):
        planned(folder, tmp_path / "draft")


def test_examples_have_the_types_of_the_graph(folder: Path, tmp_path: Path) -> None:
    """tf2onnx's inputs are int32."""
    write_graph(folder / "model.onnx", {"logits": LABELS}, TensorProto.INT32)
    planned(folder, tmp_path / "draft")
    with np.load(tmp_path / "draft" / "examples" / "0.npz") as rows:
        assert {rows[name].dtype.name for name in onnx_folder_inputs()} == {"int32"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"xx", "must be a valid ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.* git lfs pull"),
    ],
)
def test_what_is_no_graph_is_one_line(
    folder: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    """Damaged, or not fetched."""
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        planned(folder, tmp_path / "draft")


def test_advice_is_of_the_command_that_was_given(folder: Path, tmp_path: Path) -> None:
    """`package` has no --task."""
    write_graph(folder / "model.onnx", {"logits": LABELS})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UsageError, match=r"not exported\. Package the graph for tensors"):
        planned(folder, tmp_path / "draft")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model with external data."""
    write_graph(tmp_path / "plain.onnx", {"logits": LABELS})
    path = tmp_path / "snapshots" / "model.onnx"
    path.parent.mkdir()
    model = onnx.load(tmp_path / "plain.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(999, np.float32), "more"))
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=100)
    return path


def test_files_of_the_hubs_cache_are_packed(outside: Path, tmp_path: Path) -> None:
    """They are links into one folder of blobs; a link to anywhere else is refused."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate((outside, outside.parent / "data")):
        shutil.move(file, blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    draft = tmp_path / "draft"
    draft.mkdir()
    copy, _, _ = onnx_proof._rewritten(outside, draft, None, [])
    assert copy.parent == draft
    assert graph.digest(copy)
    data = outside.parent / "data"
    data.unlink()
    data.symlink_to(Path("..") / "plain.onnx")
    with pytest.raises(ModelError, match="must lie in its folder, got 'data'"):
        onnx_proof._rewritten(outside, draft, None, [])


def test_missing_external_data_is_named(outside: Path) -> None:
    """Exporting again would be no help."""
    (outside.parent / "data").unlink()
    with pytest.raises(ModelError, match=r"got no data\. Copy that file to"):
        graph.contract_of(outside)


def test_graphs_that_are_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A merged decoder beside an encoder; variants of what is taken are not."""
    for name in ("encoder_model", "encoder_model_fp16", "decoder_model_merged"):
        (tmp_path / f"{name}.onnx").touch()
    graphs.of_folder(tmp_path, marship.PackageSettings())
    assert "left out of the archive: decoder_model_merged.onnx. Name" in capsys.readouterr().err
    file = tmp_path / "decoder_model_merged.onnx"
    graphs.of_folder(tmp_path, marship.PackageSettings(graph=(f"decoder={file}",)))
    assert not capsys.readouterr().err
    (tmp_path / "encoder_model.onnx").unlink()
    with pytest.raises(UsageError, match=r"marship package \S+/encoder_model_fp16\.onnx --handler"):
        onnx_folder.graph_of(tmp_path, None)
