"""Folders in Hugging Face's layout: `onnx/model.onnx` beside a tokenizer or an image processor."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_extensions
import pytest

import marship
from marship.contract import Contract, TensorSpec, read_golden
from marship.contract.tolerance import Tolerance
from marship.errors import UsageError
from marship.operate import check
from marship.packaging import onnx_folder
from marship.proof import onnx_proof, parity
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


def test_a_graph_that_packing_repairs_and_its_operators_of_a_library(
    parts: Path, tmp_path: Path
) -> None:
    """A folder's graph is read as a lone file is, and every run of it has the library."""
    folder = laid_out(parts, "opinion", tmp_path / "opinion", "model.onnx")
    model = onnx.load(folder / "model.onnx")
    words = onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"a"])
    model.graph.initializer.append(words)
    own = onnx.helper.make_node("StringUpper", ["words"], ["upper"], domain="ai.onnx.contrib")
    nodes = [own, *model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.contrib", 1))
    onnx.save(model, folder / "model.onnx")
    library = shutil.copy(onnxruntime_extensions.get_library_path(), tmp_path / "libtexts.so")
    done = check.check(packed(folder, tmp_path, custom_ops=(str(library),)))
    assert (done.golden_cases > 0, done.golden_requests) == (True, 1)


def test_the_tolerance_is_that_of_the_golden_cases_in_the_archive(
    parts: Path, tmp_path: Path
) -> None:
    """They are drawn anew once padding is known; outputs are small, so that they scale it."""
    folder = laid_out(parts, "states", tmp_path / "states", "model.onnx")
    model = onnx.load(folder / "model.onnx")
    (output,) = (value for value in model.graph.output if value.name == "last_hidden_state")
    for node in model.graph.node:
        node.output[:] = [n.replace(output.name, "large") for n in node.output]
        node.input[:] = [n.replace(output.name, "large") for n in node.input]
    scale = onnx.numpy_helper.from_array(np.array(1e-3, np.float32), "thousandth")
    model.graph.initializer.append(scale)
    model.graph.node.append(onnx.helper.make_node("Mul", ["large", scale.name], [output.name]))
    onnx.save(model, folder / "model.onnx")
    found = archive.read(packed(folder, tmp_path))
    assert found.contract is not None
    contract = replace(found.contract, tolerance=Tolerance())
    cases = read_golden(BytesIO(found.contents("golden.npz")))
    wanted, _ = onnx_proof.with_tolerance(contract, parity.runner(folder / "model.onnx"), cases)
    assert found.contract.tolerance == wanted.tolerance
    assert wanted.tolerance.factors["last_hidden_state"] < 1


def test_a_rule_for_sizes_holds_for_the_one_length(parts: Path) -> None:
    """Two inputs with lengths of their own get one, which obeys the rules of both."""
    shapes = {"input_ids": ("n", "a"), "attention_mask": ("n", "b")}
    inputs = tuple(TensorSpec(name, "int64", shape) for name, shape in shapes.items())
    stated = Contract(inputs, (), ("m.onnx",), "", 17, bounds={"a": (4, None), "n": (2, None)},
                      steps={"a": 4, "b": 6, "n": 2})  # fmt: skip
    found = onnx_folder._with_length(stated, parts)
    assert found.steps == {"n": 2, "length": 12}
    assert found.bounds == {"n": (2, None)}


def test_a_picture_gets_labels(parts: Path, tmp_path: Path) -> None:
    """And its samples are golden requests."""
    folder = laid_out(parts, "photo", tmp_path / "photo", "onnx/model.onnx")
    found = packed(folder, tmp_path)
    done = check.check(found, parts / "photo-run" / "sample_wide.png")
    assert done.golden_requests == 2
    assert done.response is not None
    assert len(json.loads(done.response.body)["top"]) == 4


def ending(folder: Path, *operators: str, name: str) -> Path:
    """The folder, its graph's logits led through some operators and renamed."""
    model = onnx.load(folder / "model.onnx")
    before = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["plain" if output == before else output for output in node.output]
        node.input[:] = ["plain" if given == before else given for given in node.input]
    before = "plain"
    for number, operator in enumerate(operators):
        after = name if number == len(operators) - 1 else f"{name}_{number}"
        axis = {"axis": -1} if "Softmax" in operator else {}
        model.graph.node.append(onnx.helper.make_node(operator, [before], [after], **axis))
        before = after
    model.graph.output[0].name = name
    onnx.save(model, folder / "model.onnx")
    return folder


def responses(path: Path, request: Path) -> list[dict[str, object]]:
    """What a golden request's texts or picture get of an archive."""
    response = check.check(path, request).response
    assert response is not None
    assert response.status == 200
    found = json.loads(response.body)
    return found if isinstance(found, list) else found["top"]


def configured(folder: Path, **settings: object) -> Path:
    """The folder with other settings in config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("operators", "name"),
    [
        (("Softmax",), "probabilities"),
        (("LogSoftmax", "Exp"), "logits"),
        (("LogSoftmax",), "output_0"),
    ],
    ids=["by name", "by values", "logarithms"],
)
def test_probabilities_of_a_graph_are_served_as_they_are(
    operators: tuple[str, ...], name: str, parts: Path, tmp_path: Path
) -> None:
    """A softmax in the graph is the only one: the scores are those of the graph without it."""
    plain = packed(parts / "opinion-run", tmp_path)
    folder = laid_out(parts, "opinion", tmp_path / "other", "model.onnx")
    other = packed(ending(folder, *operators, name=name), tmp_path)
    request = parts / "opinion-run" / "sample_texts.json"
    got, want = responses(other, request), responses(plain, request)
    for one, two in zip(got, want, strict=True):
        assert one["label"] == two["label"]
        assert one["score"] == pytest.approx(two["score"], abs=1e-4)


def test_probabilities_of_several_labels_are_served_as_they_are(
    parts: Path, tmp_path: Path
) -> None:
    """They come from a sigmoid, and do not sum to 1."""
    paths = [laid_out(parts, "opinion", tmp_path / name, "model.onnx") for name in ("a", "b")]
    ending(paths[1], "Sigmoid", name="output_0")
    request = parts / "opinion-run" / "sample_texts.json"
    want, got = (
        responses(
            packed(configured(path, problem_type="multi_label_classification"), tmp_path), request
        )
        for path in paths
    )
    for one, two in zip(got, want, strict=True):
        assert one["label"] == two["label"]
        assert one["score"] == pytest.approx(two["score"], abs=1e-4)


def test_a_picture_gets_the_probabilities_of_its_graph(parts: Path, tmp_path: Path) -> None:
    """A softmax in the graph is the only one there, too."""
    plain = packed(parts / "photo-run", tmp_path)
    folder = laid_out(parts, "photo", tmp_path / "other", "model.onnx")
    other = packed(ending(folder, "Softmax", name="probs"), tmp_path)
    request = parts / "photo-run" / "sample_wide.png"
    for one, two in zip(responses(other, request), responses(plain, request), strict=True):
        assert one["label"] == two["label"]
        assert one["probability"] == pytest.approx(two["probability"], abs=1e-4)


def test_tokens_get_the_probabilities_of_their_graph(tmp_path: Path) -> None:
    """Of token classification the labels are on the last axis."""
    write_texts(tmp_path / "tags", "Bert", "ForTokenClassification", word_pieces, num_labels=3)
    marship.export(f"hf:{tmp_path / 'tags'}", QUICK, out=tmp_path / "tags-run")
    want = packed(tmp_path / "tags-run", tmp_path)
    folder = laid_out(tmp_path, "tags", tmp_path / "other", "model.onnx")
    got = packed(ending(folder, "Softmax", name="probabilities"), tmp_path)
    request = tmp_path / "tags-run" / "sample_texts.json"
    for one, two in zip(responses(got, request), responses(want, request), strict=True):
        assert [row["entity"] for row in one] == [row["entity"] for row in two]
        assert [row["score"] for row in one] == pytest.approx([r["score"] for r in two], abs=1e-4)


def test_logits_that_are_named_probabilities_are_refused(parts: Path, tmp_path: Path) -> None:
    """With their values, and nothing is written."""
    folder = laid_out(parts, "opinion", tmp_path / "named", "model.onnx")
    with pytest.raises(UsageError, match="output probs must hold probabilities from 0 to 1, got"):
        packed(ending(folder, "Identity", name="probs"), tmp_path)
    assert not [*tmp_path.glob("*.mar")]


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


def test_a_folder_of_weights_names_the_export(tmp_path: Path) -> None:
    """A folder of transformers without a graph is refused with the command that makes one."""
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(UsageError, match=r"must hold an ONNX graph, .*: marship export hf:"):
        marship.package(tmp_path)
