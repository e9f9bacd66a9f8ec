"""A worker reads texts as transformers and sentence-transformers do."""

import json
from pathlib import Path
from typing import Any

import pytest

from marship.contract import Contract, TensorSpec
from marship.errors import ParityError, UsageError
from marship.pretrained import crosscheck, texts
from marship.pretrained.folder import ModelFolder
from marship.serving.texts import TEXT_FILE, TOKENIZER_FILE, Text, TextModel
from marship.storage import write_json
from pretrained_folders import byte_pairs, write_texts

HEAD = "ForSequenceClassification"
INPUTS = tuple(TensorSpec(n, "int64", ("batch", "length")) for n in ("input_ids", "attention_mask"))
CONTRACT = Contract(INPUTS, (), ("model.onnx",), "", 17, bounds={"length": (1, 100)})


def changed(file: Path, **settings: object) -> None:
    """Change settings in a JSON file."""
    write_json(file, json.loads(file.read_text()) | settings)


def reader(folder: Path, place: Path, **about: object) -> tuple[TextModel, Any]:
    """How a worker reads texts for a folder's model, and the tokenizer of transformers."""
    opened = ModelFolder.at(folder)
    tokenizer = texts.tokenizer_of(opened)
    files = texts.files(opened, tokenizer, "logits", [])
    (place / TOKENIZER_FILE).write_bytes(files[TOKENIZER_FILE])
    settings = json.loads(files[TEXT_FILE]) | about
    return TextModel(settings, place / TOKENIZER_FILE, CONTRACT), tokenizer


def ids(served: TextModel, text: str, pair: str | None = None) -> list[int]:
    """The tokens of a text."""
    found: list[int] = served.read(Text(text, pair)).inputs["input_ids"][0].tolist()
    return found


def test_special_tokens_in_a_text_are_what_the_tokenizer_says(tmp_path: Path) -> None:
    """With split_special_tokens `</s>` is text, and a worker that reads it otherwise is refused."""
    folder = write_texts(tmp_path / "hf", "Roberta", HEAD, byte_pairs)
    served, tokenizer = reader(folder, tmp_path)
    assert ids(served, "No</s>") == tokenizer("No</s>")["input_ids"]
    changed(folder / "tokenizer_config.json", split_special_tokens=True)
    split, tokenizer = reader(folder, tmp_path)
    assert ids(split, "No</s>") == tokenizer("No</s>")["input_ids"] != ids(served, "No</s>")
    crosscheck.check_tokens(split, tokenizer, [])
    with pytest.raises(ParityError, match="input_ids of 'No <s> no' must be those of"):
        crosscheck.check_tokens(served, tokenizer, [])


def test_an_empty_second_text_makes_no_pair(tmp_path: Path) -> None:
    """As in transformers, which adds no separator for it."""
    served, tokenizer = reader(write_texts(tmp_path / "hf", "Roberta", HEAD, byte_pairs), tmp_path)
    assert ids(served, "No", "") == tokenizer("No", "")["input_ids"] == ids(served, "No")


def write_prompt(folder: Path, name: object, **pooling: object) -> Path:
    """A model of sentence-transformers with prompts, one of which is the default."""
    write_texts(folder, "Roberta", "Model", byte_pairs)
    kinds = ("Transformer", "Pooling")
    modules = [{"path": f"{k}", "type": f"sentence_transformers.models.{k}"} for k in kinds]
    write_json(folder / "modules.json", modules)
    (folder / "Pooling").mkdir()
    write_json(folder / "Pooling" / "config.json", {"pooling_mode": "mean", **pooling})
    file = folder / "config_sentence_transformers.json"
    write_json(file, {"prompts": {"query": "query: "}, "default_prompt_name": name})
    return folder


def test_the_default_prompt_stands_before_each_text(tmp_path: Path) -> None:
    """As SentenceTransformer.encode puts it there; samples make room for it."""
    folder = write_prompt(tmp_path / "hf", "query")
    served, tokenizer = reader(folder, tmp_path)
    assert ids(served, "No") == tokenizer("query: No")["input_ids"]
    crosscheck.check_tokens(served, tokenizer, [Text("No")])
    most = len(tokenizer("No")["input_ids"])
    with pytest.raises(UsageError, match="such as 'query: No', got a bound of"):
        texts.samples_of(ModelFolder.at(folder), tokenizer, most)


@pytest.mark.parametrize(
    ("name", "pooling", "message"),
    [
        ("query", {"include_prompt": False}, "must pool the tokens of the prompt 'query: ', too"),
        ("passage", {}, "must be the name of a prompt in it, got 'passage'"),
    ],
)
def test_a_prompt_that_is_not_applied_is_refused(
    tmp_path: Path, name: str, pooling: dict[str, object], message: str
) -> None:
    """Embeddings would be others."""
    with pytest.raises(UsageError, match=message):
        texts.pooling_of(write_prompt(tmp_path / "hf", name, **pooling))


def test_prompts_without_a_default_are_the_clients(tmp_path: Path) -> None:
    """Nothing stands before a text; several poolings are joined in the order of their list."""
    folder = write_prompt(tmp_path / "hf", None, pooling_mode=["mean", "cls"], include_prompt=False)
    assert texts.pooling_of(folder) == texts.Pooling(("mean", "cls"))
