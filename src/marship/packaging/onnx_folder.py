"""ONNX files in Hugging Face's layout: graphs beside a configuration and a tokenizer or processor.

config.json tokenizer.json ...             or preprocessor_config.json
onnx/model.onnx onnx/model_quantized.onnx  or the same beside config.json
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from marship import console, storage
from marship.contract import Array, Arrays, Contract, TensorSpec
from marship.contract.tolerance import Tolerance
from marship.errors import ParityError, UsageError
from marship.fit.recipe import RECIPE_FILE
from marship.packaging.mar import Contents
from marship.packaging.settings import PackageSettings
from marship.pretrained import labels
from marship.pretrained.folder import CONFIG_FILE, ModelFolder, read_object
from marship.serving.texts.answers import EXTRACT

STEM = "model"
LENGTH = "length"
EXAMPLES_DIR = "examples"
_LOGITS = "logits"
"""The output of a model with a head."""
_STATES = ("last_hidden_state", "token_embeddings")
"""Outputs that feature-extraction serves."""
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """How a graph of a folder is packed.

    Attributes:
        model: The graph.
        example: A folder with inputs that it takes.
        handler: The name of one of marship's.
        finish: Completes what goes into the archive, once the graph's contract is known.
    """

    model: Path
    example: Path
    handler: str
    finish: Callable[[Contents], Contents]


def is_one(folder: Path) -> bool:
    """Whether a folder has this layout, and is no run folder."""
    return not (folder / RECIPE_FILE).is_file() and bool(graphs(folder))


def check_run(folder: Path) -> None:
    """Refuse a folder of transformers that holds weights and no graph.

    Raises:
        UsageError: It is one; the message names the export that makes it a run folder.
    """
    if (folder / CONFIG_FILE).is_file() and not (folder / RECIPE_FILE).is_file():
        raise UsageError(
            f"{folder} must hold an ONNX graph, got {CONFIG_FILE} without one. Export the model "
            f"first: marship export hf:{folder}"
        )


def graphs(folder: Path) -> list[Path]:
    """The graphs of a folder, of `onnx/` if there are some."""
    return sorted((folder / "onnx").glob("*.onnx")) or sorted(folder.glob("*.onnx"))


def graph_of(folder: Path, variant: str | None) -> Path:
    """The graph to pack: model.onnx, or model_<variant>.onnx.

    Raises:
        UsageError: There is none, there are several and none is model.onnx, or they are parts.
    """
    found = graphs(folder)
    variants = {file.stem.removeprefix(STEM).lstrip("_"): file for file in found}
    if parts := [file.name for file in found if not file.stem.startswith(STEM)]:
        first = next((file for file in found if "encoder" in file.name), found[0])
        raise UsageError(
            f"{folder} must hold one graph, {STEM}.onnx, or variants of it, got "
            f"{', '.join(parts)}: parts of a model that run one after the other. Package one of "
            f"them with a handler of your own: marship package {first} --handler my_handler.py"
        )
    if variant is None and (len(found) == 1 or "" in variants):
        return variants.get("", found[0])
    if variant in variants:
        return variants[variant]
    names = ", ".join(filter(None, variants))
    raise UsageError(
        f"variant must be one of {names or 'none'}, got {variant}. Those are the files "
        f"{STEM}_VARIANT.onnx in {found[0].parent}."
    )


def planned(folder: Path, draft: Path, settings: PackageSettings) -> PackingPlan:
    """How the folder's graph is packed.

    Args:
        folder: With the layout.
        draft: For what goes into the archive.
        settings: The variant, such as quantized, and the kind of golden cases.

    Raises:
        UsageError: The graph is no model for texts or pictures that can be served.
        ParityError: The image processor does what is not done here.
    """
    from marship.proof import onnx_proof

    model = graph_of(folder, settings.variant)
    if not (folder / CONFIG_FILE).is_file():
        raise UsageError(
            f"{folder} must hold {CONFIG_FILE} beside its graphs, got none. Package the file alone "
            f"for tensors in and out: marship package {model}"
        )
    inputs, outputs = onnx_proof.stated(model)
    output = _output_of(model, [*outputs])
    advice = f"Package the graph for tensors in and out: marship package {model}"
    opened = ModelFolder.at(folder, EXTRACT if output in _STATES else None, advice)
    _check_labels(opened, output, outputs[output])
    (draft / EXAMPLES_DIR).mkdir()
    if opened.is_text:
        return _of_texts(opened, model, draft, inputs, output, settings=settings)
    if output != next(iter(outputs)):  # the one that image_handler.py reads
        raise UsageError(
            f"{model} must give {output} as its first output, got {', '.join(outputs)}. Export it "
            "with that output alone."
        )
    return _of_pictures(opened, model, draft, inputs, output, settings=settings)


def _output_of(model: Path, outputs: Sequence[str]) -> str:
    """The output to serve: logits, the states of all tokens, probabilities, or the only one.

    Raises:
        UsageError: There are others.
    """
    for name in (_LOGITS, *_STATES, *labels.PROBABILITIES):
        if name in outputs:
            return name
    if len(outputs) == 1:
        return outputs[0]
    raise UsageError(
        f"{model} must have an output {_LOGITS} or {_STATES[0]}, or one alone, got "
        f"{', '.join(outputs)}. Package it for tensors in and out: marship package "
        f"{model}"
    )


def _check_labels(folder: ModelFolder, output: str, size: object) -> None:
    """Refuse a graph that gives another number of logits than there are labels.

    Args:
        folder: With the labels.
        output: The name of the logits.
        size: Of their last axis; a name, or nothing, where it is not known.
    """
    if folder.task == EXTRACT or not isinstance(size, int):
        return
    if size != folder.config.num_labels:
        raise UsageError(
            f"id2label of {folder.path / CONFIG_FILE} must name a label for each of the {size} "
            f"values of {output}, got {folder.config.num_labels}. Correct it."
        )


def _of_texts(  # noqa: PLR0913  the parts of a plan
    folder: ModelFolder,
    model: Path,
    draft: Path,
    inputs: Sequence[TensorSpec],
    output: str,
    *,
    settings: PackageSettings,
) -> PackingPlan:
    from marship.pretrained import crosscheck, texts
    from marship.proof import onnx_proof, parity
    from marship.serving.texts import INPUTS, TEXT_FILE, TOKENIZER_FILE, TextModel

    tokenizer = texts.tokenizer_of(folder)
    names = _checked_inputs(model, inputs, INPUTS)
    _check_length(inputs, model)
    bounds = texts.stated_bounds(folder, tokenizer)
    samples = texts.samples_of(folder, tokenizer, min(bounds))
    rows = [texts.row_of(tokenizer, names, text) for text in samples]
    types = {spec.name: spec.dtype for spec in inputs}  # some exporters' are int32
    rows = [{name: values.astype(types[name]) for name, values in row.items()} for row in rows]
    files = texts.files(folder, tokenizer, output, samples)
    _write(draft, files, rows)
    pads = {k: v for k, v in texts.pads_of(tokenizer, folder.config).items() if k in names}

    def finish(contents: Contents) -> Contents:
        libraries = [*map(Path, settings.custom_ops)]
        run = parity.runner(contents.model, libraries=libraries)  # loaded in a process before
        found, examples = _with_length(contents.contract, model), texts.padded(rows, pads)
        most = texts.longest(run, rows[0], bounds)
        found = replace(found, bounds={**found.bounds, LENGTH: (1, most)})
        (given,) = (spec for spec in found.outputs if spec.name == output)
        _check_labels(folder, output, given.shape[-1] if given.shape else None)
        found = _padded(found, run, examples, pads)
        if folder.task != EXTRACT:
            outputs = [run(row)[output] for row in rows]
            _keep_scores(draft / TEXT_FILE, contents.model, output, outputs)
        served = TextModel(read_object(draft / TEXT_FILE), draft / TOKENIZER_FILE, found)
        crosscheck.check_tokens(served, tokenizer, samples)
        cases = parity.golden_from(run, found, examples, settings.golden)  # of equal lengths
        found, _ = onnx_proof.with_tolerance(replace(found, tolerance=Tolerance()), run, cases)
        assets = [draft / name for name in files if name != texts.SAMPLES_FILE]
        contents = replace(contents, contract=found, golden=cases)
        return _completed(contents, folder, assets, [draft / texts.SAMPLES_FILE])

    return PackingPlan(model, draft / EXAMPLES_DIR, "text_handler.py", finish)


def _of_pictures(  # noqa: PLR0913  the parts of a plan
    folder: ModelFolder,
    model: Path,
    draft: Path,
    inputs: Sequence[TensorSpec],
    output: str,
    *,
    settings: PackageSettings,
) -> PackingPlan:
    from marship.pretrained import pictures
    from marship.proof import parity

    _checked_inputs(model, inputs, (pictures.INPUT,))
    processor = pictures.processor_of(folder)
    files, examples = pictures.prepared(folder, processor)
    _write(draft, files, [{pictures.INPUT: row[None]} for row in examples[pictures.INPUT]])
    assets, requests = [draft / pictures.PICTURE_FILE], [draft / name for name in pictures.SAMPLES]

    def finish(contents: Contents) -> Contents:
        run = parity.runner(contents.model, libraries=[*map(Path, settings.custom_ops)])
        outputs = [run({pictures.INPUT: row[None]})[output] for row in examples[pictures.INPUT]]
        _keep_scores(draft / pictures.PICTURE_FILE, contents.model, output, outputs)
        return _completed(contents, folder, assets, requests)

    return PackingPlan(model, draft / EXAMPLES_DIR, "image_handler.py", finish)


def _keep_scores(file: Path, model: Path, output: str, samples: Sequence[Array]) -> None:
    """Have text.json or picture.json say so where an output holds scores already.

    Raises:
        UsageError: It is named after probabilities, and holds others.
    """
    from marship.proof import graph

    about = read_object(file)
    if about["scores"] == "none":
        return
    if labels.are_scores(output, samples, graph.maker(model, output)):
        storage.write_json(file, about | {"scores": "none"})
        text = f"output {output} holds probabilities already: they are served as they are"
        console.err.print(text, style="dim", markup=False, soft_wrap=True)


def _checked_inputs(model: Path, inputs: Sequence[TensorSpec], known: Sequence[str]) -> list[str]:
    """The names of a graph's inputs, if they are those of a tokenizer or an image processor."""
    names = [spec.name for spec in inputs]
    if not {known[0]} <= set(names) <= set(known):
        raise UsageError(
            f"{model} must take {', '.join(known)} or some of them, got {', '.join(names)}. "
            f"Package it for tensors in and out: marship package {model}"
        )
    return names


def _check_length(inputs: Sequence[TensorSpec], model: Path) -> None:
    lengths = [(*spec.shape, 1, 1)[1] for spec in inputs]
    if fixed := [length for length in lengths if not isinstance(length, str)]:
        raise UsageError(
            f"{model} must take texts of any length, got a graph for {fixed[0]} tokens. Export it "
            "with a variable length: from PyTorch's weights, marship export hf:FOLDER."
        )


def _write(draft: Path, files: Mapping[str, bytes], rows: Sequence[Arrays]) -> None:
    for name, content in files.items():
        (draft / name).write_bytes(content)
    for number, row in enumerate(rows):
        np.savez(draft / EXAMPLES_DIR / f"{number}.npz", **row)  # type: ignore[arg-type]  # its stub takes no mapping


def _with_length(contract: Contract, model: Path) -> Contract:
    """The contract with one name for the length of a text, which is that of all inputs.

    By runs alone, a mask of one token for all is a length of its own.

    Raises:
        UsageError: The length is fixed.
    """
    lengths = [spec.shape[1] for spec in contract.inputs]
    _check_length(contract.inputs, model)

    def renamed(spec: TensorSpec) -> TensorSpec:
        shape = tuple(LENGTH if axis in lengths else axis for axis in spec.shape)
        return replace(spec, shape=shape)

    bounds = {axis: bound for axis, bound in contract.bounds.items() if axis not in lengths}
    steps = {axis: step for axis, step in contract.steps.items() if axis not in lengths}
    if (step := math.lcm(*(contract.steps.get(str(axis), 1) for axis in lengths))) > 1:
        steps[LENGTH] = step
    return replace(
        contract,
        inputs=tuple(map(renamed, contract.inputs)),
        outputs=tuple(map(renamed, contract.outputs)),
        bounds=bounds,
        steps=steps,
    )


def _padded(contract: Contract, run: Run, examples: Arrays, pads: Mapping[str, int]) -> Contract:
    """The contract with pad values, if padding changes no output."""
    from marship.pretrained.texts import APART
    from marship.proof import parity

    inputs = tuple(replace(spec, pad_value=pads.get(spec.name)) for spec in contract.inputs)
    filled = replace(contract, inputs=inputs)
    try:
        if pads and contract.batch_axis is not None:
            parity.prove_padding(filled, run, examples)
            return filled
    except ParityError:
        pass  # as for a graph whose activations are quantized by one scale
    console.err.print(APART, style="dim", soft_wrap=True)
    return contract


def _completed(
    contents: Contents, folder: ModelFolder, assets: Sequence[Path], requests: Sequence[Path]
) -> Contents:
    """With the files of the tokenizer or processor, and requests to record."""
    evidence = {
        **contents.evidence,
        "example": None,
        "pretrained": folder.evidence(),
    }
    return replace(
        contents,
        assets=(*assets, *contents.assets),
        requests=contents.requests or tuple(requests),
        evidence=evidence,
    )
