"""The PyTorch model of a folder, with the one output that is served."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from marship.contract import Array, Arrays
from marship.contract.tolerance import Tolerance, agree
from marship.errors import ModelError, UsageError
from marship.pretrained import texts
from marship.pretrained.folder import CLASSIFY_PICTURES, ModelFolder, opened, reason_of
from marship.serving.texts.answers import CLASSIFY, EXTRACT, TAG

CLASSES = {
    CLASSIFY: "AutoModelForSequenceClassification",
    TAG: "AutoModelForTokenClassification",
    CLASSIFY_PICTURES: "AutoModelForImageClassification",
    EXTRACT: "AutoModel",
}
OUTPUTS = {EXTRACT: "last_hidden_state"}
LOGITS = "logits"
ENCODER = "EncoderModel"
UNUSED = ("pooler.",)
"""Weights of AutoModel that last_hidden_state does not depend on."""
PLAIN = "eager"
"""Attention as matrix products and a softmax, in which ONNX Runtime is fast."""
_SHOWN = 3


class Served(nn.Module):
    """A model of transformers that returns one output by name, of those that it has."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The served output for the model's inputs by name."""
        return {self.output: self.model(**tensors, return_dict=True)[self.output]}


def output_of(task: str) -> str:
    """The name of the output that is served for a task."""
    return OUTPUTS.get(task, LOGITS)


def build(folder: str, task: str) -> Served:
    """The model of a folder in float32, in eval mode; `marship export hf:FOLDER` calls it.

    Raises:
        UsageError: It cannot be read, or lacks weights for the task.
    """
    return Served(loaded(ModelFolder(Path(folder), task)), output_of(task))


def loaded(folder: ModelFolder) -> Any:  # noqa: ANN401  a class of many
    """The model as transformers builds it.

    Raises:
        UsageError: It cannot be read, or lacks weights for the task.
    """
    model, found = opened(
        _class_of(folder),
        folder.path,
        dtype=torch.float32,
        attn_implementation=PLAIN,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below: transformers logs which they are
    )
    if others := sorted(found["mismatched_keys"]):
        name, have, want = others[0]
        raise UsageError(
            f"{folder.path} must have the weights of its config.json, got {name} of shape "
            f"{list(have)}, not {list(want)}{_more(others[1:])}. Correct config.json, such as its "
            "id2label."
        )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(UNUSED))
    if missing:
        raise UsageError(
            f"{folder.path} must have the weights for {folder.task}, got none for "
            f"{', '.join(missing[:_SHOWN])}{_more(missing[_SHOWN:])}: they would be "
            "random. Train the model for it, or name another --task."
        )
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # keys and values of earlier texts
    return model.eval()


def _class_of(folder: ModelFolder) -> str:
    names = folder.config.architectures or []
    if folder.task == EXTRACT and any(str(name).endswith(ENCODER) for name in names):
        return "AutoModelForTextEncoding"  # of T5's kind AutoModel would want a decoder, too
    return CLASSES[folder.task]


def _more(others: Sequence[object]) -> str:
    return f" and {len(others)} more" if others else ""


def ignores_padding(model: nn.Module, rows: Sequence[Arrays], pads: dict[str, int]) -> bool:
    """Whether texts that are filled to one length get what each gets alone, in PyTorch.

    Args:
        model: Of transformers.
        rows: Inputs of one text each, int64, shape (1, length).
        pads: The values that fill short texts, by input.
    """
    together = states(model, texts.padded(rows, pads))
    for place, row in enumerate(rows):
        alone = states(model, row)[0]
        joined = together[place][tuple(slice(size) for size in alone.shape)]
        if not agree({"": joined}, {"": alone}, Tolerance(atol=1e-4, rtol=1e-3)):
            return False
    return True


def others(model: nn.Module, row: Arrays) -> list[str]:
    """What a model of transformers returns beside the output that is served.

    Args:
        model: Of transformers.
        row: Its inputs.
    """
    return [name for name in _returned(model, row) if name not in {LOGITS, OUTPUTS[EXTRACT]}]


def states(model: nn.Module, inputs: Arrays) -> Array:
    """The output that is served, float32.

    Raises:
        ModelError: transformers cannot run the model on these inputs.
    """
    found = _returned(model, inputs)
    values: Array = found[LOGITS if LOGITS in found else OUTPUTS[EXTRACT]].numpy()
    return values


@torch.no_grad()
def _returned(model: nn.Module, inputs: Arrays) -> Any:  # noqa: ANN401  a class for each model
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    try:
        return model(**tensors, return_dict=True)
    except Exception as error:  # models raise errors of many unrelated types
        shapes = ", ".join(f"{name}{[*values.shape]}" for name, values in inputs.items())
        raise ModelError(
            f"{type(model).__name__} must run on {shapes}, got {reason_of(error)}. Correct "
            "config.json or the files beside it, or export it from a function of your own."
        ) from error
