"""What is decided about a folder of transformers before anything is converted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marship.errors import MarshipError, ModelError, UsageError
from marship.exporting import pretrained
from marship.pretrained import model, texts
from marship.pretrained.folder import ModelFolder
from marship.serving.texts.answers import EXTRACT
from marship.storage import write_json
from pretrained_folders import byte_pairs, write_pictures, write_texts

HEAD = "ForSequenceClassification"
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def changed(file: Path, **settings: object) -> None:
    """Change settings in a JSON file."""
    write_json(file, json.loads(file.read_text()) | settings)


def refusal(folder: Path, *bounds: str) -> str:
    """The error of planning a folder's export."""
    with pytest.raises(MarshipError) as caught:
        pretrained.planned(ModelFolder.at(folder), folder / "run", bounds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_model_raises_is_one_line(tmp_path: Path) -> None:
    """Models raise errors of any type on the texts that they are tried on."""
    narrow = write_texts(tmp_path / "narrow", "Bert", HEAD, type_vocab_size=1)
    assert "must run on input_ids[6, " in (found := refusal(narrow))
    assert "got IndexError: index out of range in self. Correct" in found
    both = write_texts(tmp_path / "both", "T5", "Model", byte_pairs, **T5)
    assert "T5Model must run on input_ids[1, 3]" in (found := refusal(both))
    assert "ValueError: You must specify exactly one of input_ids" in found
    wide = write_texts(tmp_path / "wide", "Bert", HEAD)
    changed(wide / "config.json", max_position_embeddings=140)
    assert "position_embeddings.weight of shape [130, 16], not [140, 16]. Correct" in refusal(wide)
    changed(wide / "config.json", max_position_embeddings=130, id2label={"0": "A"})
    assert "classifier.bias of shape [2], not [1] and 1 more. Correct" in refusal(wide)
    assert "must take texts of 3 tokens, such as 'No', got a bound of 2" in refusal(
        write_texts(tmp_path / "bert", "Bert", HEAD), "length=1:2"
    )


def test_why_no_length_is_taken_is_said() -> None:
    """The model's own reason; one that does not even take the shortest text has another."""
    row = {"input_ids": np.zeros((1, 3), np.int64)}

    def takes_five(inputs: Any) -> None:
        if (count := inputs["input_ids"].shape[1]) > 5:
            raise ModelError(f"no {count}.")

    assert texts.longest(takes_five, row, [9, 5]) == 5
    with pytest.raises(UsageError, match=r"got none of \[9, 8\]: no 8\. Correct"):
        texts.longest(takes_five, row, [9, 8])
    with pytest.raises(ModelError, match=r"^no 6\.$"):
        texts.longest(takes_five, {"input_ids": np.zeros((1, 6), np.int64)}, [9])


def test_an_encoder_is_opened_without_a_decoder(tmp_path: Path) -> None:
    """T5EncoderModel, which AutoModel would read as T5Model, without the decoder's weights."""
    folder = write_texts(tmp_path / "hf", "T5", "EncoderModel", byte_pairs, **T5)
    opened = ModelFolder.at(folder)
    assert opened.task == EXTRACT
    assert type(model.loaded(opened)).__name__ == "T5EncoderModel"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "must make one size of all pictures, got 32 x 53 and 47"),
        ({"do_resize": False}, "must make one size of all pictures, got 120 x 200 and 90 x 61"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean of the image processor must be a"),
        ({"size": {"height": 40, "width": 40}}, r"must run on pixel_values\[2, 3, 40, 40\], got V"),
    ],
)
def test_pictures_that_a_model_cannot_take_are_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """Of different sizes, of one colour, or of another size than the model's."""
    folder = write_pictures(tmp_path / "hf", settings)
    with pytest.raises(MarshipError, match=message):
        pretrained.planned(ModelFolder.at(folder), tmp_path / "run", ())


def test_pointers_of_git_lfs_and_folders_of_timm_are_named(tmp_path: Path) -> None:
    """With what to do: fetch the files, or export by the model's name."""
    folder = write_texts(tmp_path / "hf", "Bert", HEAD)
    for name in ("model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
        wanted = f"got pointers of Git LFS: {name}. Fetch them: git -C {folder} lfs pull"
        assert wanted in refusal(folder)
        (folder / name).write_bytes(whole)
    write_json(folder / "config.json", {"architecture": "resnet18", "num_classes": 3})
    with pytest.raises(UsageError, match=r"one of timm.* marship export timm:resnet18 --weights"):
        ModelFolder.at(folder)
