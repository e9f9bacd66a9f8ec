"""PyTorch modules of many kinds, exported as a user would: a function or class, and an example."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from collection.sample import SEED, Case, Given, Sample, drawn

KIND = "PyTorch modules"
FOLDER = Path(__file__).with_name("modules")
IMAGE = {"image": "float32[4, 3, 16, 16]"}
INPUT = {"input": "float32[4, 3, 16, 16]"}
IDS = {"ids": "int64[6, 9]<50"}
LENGTH = {"dynamic": ("ids:1=length",), "bounds": ("length=4:32",)}

MODULES: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, Any]]] = {
    "LeNet": ("pictures.py:lenet", {"input": "float32[4, 1, 28, 28]"}, {}),
    "ResNet": ("pictures.py:resnet", INPUT, {}),
    "ResNet of any size": (
        "pictures.py:resnet",
        INPUT,
        {"dynamic": ("input:2=h", "input:3=w"), "bounds": ("h=8:32", "w=8:32")},
    ),
    "MobileNet with squeeze-and-excitation": ("pictures.py:mobilenet", INPUT, {}),
    "Inception": ("pictures.py:Inception", IMAGE, {}),
    "DenseNet": ("pictures.py:DenseNet", IMAGE, {}),
    "U-Net": ("pictures.py:UNet", IMAGE, {}),
    "super resolution": ("pictures.py:Upsampler", IMAGE, {}),
    "dilated segmentation": ("pictures.py:Segmenter", IMAGE, {}),
    "group, instance and response norms": ("pictures.py:norms", INPUT, {}),
    "adaptive pools": ("pictures.py:adaptive_pools", INPUT, {}),
    "convolutional autoencoder": (
        "pictures.py:autoencoder",
        {"input": "float32[4, 1, 16, 16]"},
        {},
    ),
    "vision transformer": ("pictures.py:VisionTransformer", IMAGE, {}),
    "ConvNeXt": ("pictures.py:ConvNext", IMAGE, {}),
    "3D convolutions": ("pictures.py:volumes", {"input": "float32[4, 1, 8, 8, 8]"}, {}),
    "detector, dict of outputs": ("pictures.py:Detector", IMAGE, {}),
    "spatial transformer": (
        "pictures.py:SpatialTransformer",
        {"image": "float32[4, 3, 8, 8]"},
        {},
    ),
    "Gram matrices": ("pictures.py:Gram", IMAGE, {}),
    "LSTM": ("sequences.py:lstm", IDS, LENGTH),
    "GRU of two layers": ("sequences.py:gru", IDS, LENGTH),
    "plain RNN": ("sequences.py:rnn", IDS, LENGTH),
    "bidirectional LSTM": ("sequences.py:both_ways", IDS, LENGTH),
    "LSTM, GRU and LSTM in a row": (
        "sequences.py:Stack",
        {"signal": "float32[6, 10, 4]"},
        {"dynamic": ("signal:1=length",), "bounds": ("length=2:20",)},
    ),
    "LSTM cell with its state": (
        "sequences.py:Stateful",
        {"step": "float32[5, 4]", "h": "float32[5, 8]", "c": "float32[5, 8]"},
        {},
    ),
    "text CNN": ("sequences.py:TextCnn", IDS, LENGTH),
    "causal convolutions": ("sequences.py:CausalConv", {"signal": "float32[5, 4, 20]"}, {}),
    "transformer encoder with padding": (
        "sequences.py:Encoder",
        {"ids": "int64[6, 9]<50"},
        {"pad": ("ids=0",), "bounds": ("length=2:16",), "dynamic": ("ids:1=length",)},
    ),
    "attention with a boolean mask": (
        "sequences.py:Masked",
        {"states": "float32[5, 7, 16]", "mask": "bool[5, 7]=0"},
        {},
    ),
    "attention with an additive mask": (
        "sequences.py:Additive",
        {"query": "float32[4, 5, 8]", "key": "float32[4, 6, 8]", "bias": "float32[4, 5, 6]"},
        {},
    ),
    "causal decoder": ("sequences.py:Decoder", IDS, LENGTH),
    "encoder and decoder": (
        "sequences.py:Translator",
        {"source": "int64[4, 7]<50", "target": "int64[4, 5]<50"},
        {},
    ),
    "rotary positions, RMS norm": ("sequences.py:Rotary", {"states": "float32[4, 6, 16]"}, {}),
    "linear attention": (
        "sequences.py:LinearAttention",
        dict.fromkeys(("query", "key", "value"), "float32[4, 6, 8]"),
        {},
    ),
    "speech recognizer": (
        "sequences.py:Speech",
        {"features": "float32[4, 8, 24]"},
        {"dynamic": ("features:2=time",), "bounds": ("time=4:64",)},
    ),
    "linear": ("vectors.py:linear", {"input": "float32[8, 4]"}, {}),
    "MLP with dropout": ("vectors.py:mlp", {"input": "float32[8, 10]"}, {}),
    "norms of batches, layers and weights": (
        "vectors.py:normalized",
        {"input": "float32[8, 6]"},
        {},
    ),
    "squeeze(-1) at the end": ("vectors.py:Squeezed", {"x": "float32[8, 4]"}, {}),
    "squeeze() at the end": ("vectors.py:SqueezedAll", {"x": "float32[8, 4]"}, {}),
    "dict with a tuple": ("vectors.py:Nested", {"x": "float32[8, 4]"}, {}),
    "outputs of four types": ("vectors.py:Forms", {"x": "float32[8, 4]"}, {}),
    "bfloat16": ("vectors.py:Bfloat", {"x": "float32[8, 8]"}, {"atol": 0.05, "rtol": 0.05}),
    "float16 inside": ("vectors.py:Half", {"x": "float32[8, 8]"}, {}),
    "float64": ("vectors.py:double", {"input": "float64[8, 3]"}, {}),
    "embedding bag": ("vectors.py:Bag", {"ids": "int64[6, 5]<30"}, {}),
    "wide and deep": (
        "vectors.py:WideAndDeep",
        {"numbers": "float32[8, 3]", "categories": "int64[8, 2]<5"},
        {},
    ),
    "factorization machine": ("vectors.py:Factors", {"x": "float32[8, 12]"}, {}),
    "two towers": ("vectors.py:Towers", {"user": "int64[8]<20", "item": "float32[8, 5]"}, {}),
    "variational autoencoder": ("vectors.py:Coder", {"x": "float32[8, 8]"}, {}),
    "normalizing flow": ("vectors.py:Flow", {"x": "float32[8, 6]"}, {}),
    "mixture of experts": ("vectors.py:Experts", {"x": "float32[8, 6]"}, {}),
    "deep sets with a mask": (
        "vectors.py:DeepSet",
        {"members": "float32[6, 5, 3]", "present": "float32[6, 5]=1"},
        {},
    ),
    "graph convolutions": (
        "vectors.py:DenseGraph",
        {"nodes": "float32[4, 6, 4]", "neighbours": "float32[4, 6, 6]=1"},
        {},
    ),
    "radial splines": ("vectors.py:Splines", {"x": "float32[8, 5]"}, {}),
    "rules by values": ("vectors.py:Rules", {"x": "float32[8, 6]"}, {}),
    "statistics of rows": ("vectors.py:Normalizer", {"x": "float32[8, 6]"}, {}),
}


def samples() -> list[Sample]:
    """All modules."""
    return [Sample(KIND, name, partial(_give, *given)) for name, given in MODULES.items()]


def _give(
    place: str, inputs: Mapping[str, str], settings: Mapping[str, Any], folder: Path
) -> Given:
    """A file of one's own with fixed weights, and PyTorch's outputs."""
    import torch

    from marship.fit.recipe import resolve

    file, _, name = place.partition(":")
    reference = f"{FOLDER / file}:{name}"
    torch.manual_seed(SEED)
    model = resolve(reference)().eval()
    weights = folder / "weights.pt"
    torch.save(model.state_dict(), weights)
    generator = np.random.default_rng(SEED)
    arrays = {key: drawn(text, generator) for key, text in inputs.items()}
    with torch.no_grad():
        found = model(*(torch.from_numpy(array) for array in arrays.values()))
    case = Case(arrays, _outputs(found))
    return Given(reference, [case], export=settings, weights=weights)


def _outputs(found: Any) -> dict[str, np.ndarray]:  # noqa: ANN401  whatever a module gives
    """Named as `marship export` names outputs; bfloat16 comes as float32."""
    import torch

    if isinstance(found, torch.Tensor):
        found = {"output": found}
    if isinstance(found, tuple):
        found = {f"output_{place}": part for place, part in enumerate(found)}
    named = {}
    for key, value in found.items():
        parts = value if isinstance(value, tuple) else None
        named |= {f"{key}_{i}": part for i, part in enumerate(parts)} if parts else {key: value}
    return {
        key: (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        for key, part in named.items()
    }
