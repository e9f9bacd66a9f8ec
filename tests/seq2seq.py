"""A small model in two graphs, encoder and decoder, and the handler that docs/onnx.md shows."""

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from marship.contract import Array
from odd_models import FLOAT, INT64, graph_of

WORDS, WIDTH, START, END, MOST = 12, 8, 1, 2, 20
PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"


def write_encoder(folder: Path, name: str = "encoder") -> Path:
    """`memory = tanh(E[source])`: int64 (batch, length) to float32 (batch, length, 8)."""
    return graph_of(
        folder / f"{name}.onnx",
        [
            helper.make_node("Gather", ["E", "source"], ["embedded"]),
            helper.make_node("Tanh", ["embedded"], ["memory"]),
        ],
        {"source": (INT64, ["batch", "length"])},
        {"memory": (FLOAT, ["batch", "length", WIDTH])},
        {"E": _drawn(0, WORDS, WIDTH)},
    )


def write_decoder(folder: Path, name: str = "decoder", words: int = WORDS) -> Path:
    """Tokens attend to the memory: logits float32 (batch, steps, words)."""
    return graph_of(
        folder / f"{name}.onnx",
        [
            helper.make_node("Gather", ["E", "tokens"], ["embedded"]),
            helper.make_node("Transpose", ["memory"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["embedded", "turned"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["attention"], axis=-1),
            helper.make_node("MatMul", ["attention", "memory"], ["context"]),
            helper.make_node("Add", ["context", "embedded"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "O"], ["logits"]),
        ],
        {
            "tokens": (INT64, ["batch", "steps"]),
            "memory": (FLOAT, ["batch", "length", WIDTH]),
        },
        {"logits": (FLOAT, ["batch", "steps", words])},
        {"E": _drawn(1, words, WIDTH), "O": _drawn(2, WIDTH, words)},
    )


def _drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_handler(folder: Path) -> Path:
    """The handler of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = folder / "translate_handler.py"
    path.write_text(next(code for code in blocks if "OnnxHandler" in code))
    return path


def translated(encoder: Path, decoder: Path, source: list[list[int]]) -> list[list[int]]:
    """What ONNX's own reference implementation gives, token by token."""
    first, second = (ReferenceEvaluator(onnx.load(path)) for path in (encoder, decoder))
    (memory,) = first.run(None, {"source": np.array(source)})
    tokens = np.full((len(source), 1), START)
    for _ in range(MOST):
        (logits,) = second.run(None, {"tokens": tokens, "memory": memory})
        tokens = np.hstack([tokens, logits[:, -1:].argmax(-1)])
        if (tokens == END).any(axis=1).all():
            break
    found: list[list[int]] = tokens.tolist()
    return found
