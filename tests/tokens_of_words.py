"""A classifier of texts by one word, and its archive: no network, and a tokenizer of six words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from marship.packaging.mar import Contents, build
from marship.packaging.step import PackageSettings
from marship.proof import graph, parity
from models import write_model
from workers import HANDLERS

WORDS = ("[PAD]", "[UNK]", "the", "film", "good", "bad")
LABELS = ("NEGATIVE", "POSITIVE")
LONGEST = 16


def pack_words(folder: Path) -> Path:
    """The archive: each `bad` counts for the first label, each `good` for the second."""
    table = np.zeros((len(WORDS), len(LABELS)), np.float32)
    table[WORDS.index("bad"), 0] = table[WORDS.index("good"), 1] = 2
    axes = numpy_helper.from_array(np.array([1]), "axes")
    model = write_model(
        folder / "model.onnx",
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "input_ids"], ["votes"]),
                helper.make_node("ReduceSum", ["votes", "axes"], ["logits"], keepdims=0),
            ],
            "words",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
            [numpy_helper.from_array(table, "table"), axes],
        ),
    )
    found = graph.contract_of(model, pad_values={"input_ids": 0}, bounds={"length": (1, LONGEST)})
    contract, golden = parity.describe(found, parity.runner(model))
    about = {
        "task": "text-classification",
        "output": "logits",
        "unknown": 1,
        "truncation": "right",
        "labels": LABELS,
        "scores": "softmax",
    }
    (folder / "text.json").write_text(json.dumps(about))
    _tokenizer().save(str(folder / "tokenizer.json"))
    return build(
        Contents(
            name="words",
            handler=HANDLERS / "text_handler.py",
            model=model,
            contract=replace(contract, batch_axis="batch"),
            golden=golden,
            evidence={},
            assets=(folder / "text.json", folder / "tokenizer.json"),
        ),
        PackageSettings(model_store=folder / "store"),
    )


def _tokenizer() -> Tokenizer:
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made
