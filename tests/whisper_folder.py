"""A small Whisper model with random weights, as a Hugging Face folder, and recordings to try."""

import csv
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.convert_slow_tokenizer import bytes_to_unicode

from marship.contract import Array
from marship.storage import write_json

RATE = 16_000
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>")
END, START = 256, 257
LANGUAGES = ("<|en|>", "<|de|>", "<|ja|>")
TASKS = ("<|translate|>", "<|transcribe|>")
TIMES = 1501
SMALL = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
AS_PUBLISHED = {"d_model": 128, "encoder_ffn_dim": 512}
"""The smallest with attention heads as wide as all of OpenAI's models have."""


def special_tokens(*, multilingual: bool) -> dict[str, int]:
    """Those that are no text, in OpenAI's order, after the 256 bytes."""
    between = (*LANGUAGES, *TASKS) if multilingual else ()
    return {name: END + place for place, name in enumerate((*SPECIAL[:2], *between, *SPECIAL[2:]))}


def write_whisper(folder: Path, seed: int = 0, *, multilingual: bool = False, **shape: int) -> Path:
    """Two layers each, 16 wide or as `shape` says; its tokens are the 256 bytes."""
    special = special_tokens(multilingual=multilingual)
    no_timestamps = special[SPECIAL[-1]]
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=no_timestamps + 1 + TIMES,
        **SMALL | shape,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        init_std=0.5,  # so that what is heard matters
    )
    model = WhisperForConditionalGeneration(config).eval()
    rules = {
        "suppress_tokens": [1, 2, 7, *list(special.values())[1:-1]],
        "begin_suppress_tokens": [32, END],
        "forced_decoder_ids": None if multilingual else [[1, no_timestamps]],
        "no_timestamps_token_id": no_timestamps,
        "alignment_heads": [[0, 1], [1, 0]],
        "is_multilingual": multilingual,
        "max_length": 448,
        "return_timestamps": False,
        "decoder_start_token_id": START,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    if multilingual:
        rules["lang_to_id"] = {name: special[name] for name in LANGUAGES}
        rules["task_to_id"] = {name.strip("<|>"): special[name] for name in TASKS}
    model.save_pretrained(folder)
    write_json(folder / "generation_config.json", rules)
    write_tokenizer(folder, special)
    return folder


def write_tokenizer(folder: Path, special: Mapping[str, int]) -> None:
    """One token for each byte, and the special ones."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    added = [
        {"id": number, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token, number in special.items()
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {**level, "use_regex": True},
            "decoder": {**level, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        },
    )
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), SPECIAL[0])
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", **names})


def sound(seconds: float, seed: int) -> Array:
    """Tones that glide, float32."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * RATE)) / RATE
    pitch = generator.uniform(100, 400) * (1 + 0.5 * np.sin(2 * np.pi * 1.7 * time_s))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(np.sin(order * phase) / order for order in range(1, 6))
    return (0.2 * tone + generator.normal(0, 0.01, len(time_s))).astype(np.float32)


def write_recordings(folder: Path, count: int) -> Path:
    """An audio folder of such tones."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "transcription"))
        for number in range(count):
            samples = sound(1.5 + 0.25 * (number % 5), number)
            with wave.open(str(folder / f"{number}.wav"), "wb") as target:
                target.setparams((1, 2, RATE, 0, "NONE", ""))
                target.writeframes((samples * 32767).astype("<i2").tobytes())
            table.writerow((f"{number}.wav", f"text number {number}"))
    return folder
