r"""Serve a Whisper model of transformers: nothing is trained.

    python training/read_english.py
    python training/whisper.py --model openai/whisper-tiny.en --data-dir data/read-english
    marship export runs/whisper
    marship optimize runs/whisper
    marship package runs/whisper

`--model` names a model on the Hugging Face hub or a folder. The recordings, with metadata.csv
(file_name, transcription), are used to prove the export and to judge variants by their word
error rate, with texts normalised as in the paper (Radford et al. 2022, appendix C).

A multilingual model transcribes one language, `--language` as a code of ISO 639-1: `de` for German.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
import torch
from transcriber import RATE, SAMPLES, Rules, Transcriber
from transformers import (
    GenerationConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    logging,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from marship import console
from marship.contract import Array, Arrays
from marship.errors import DataError, UsageError
from marship.fit import checkpoint, run
from marship.fit.recipe import Recipe
from marship.serving import sounds
from marship.settings import as_dict, flags, setting
from marship.storage import replacing, write_json

SPEECH_FILE = "speech.json"
TOKENS_FILE = "tokens.json"
TABLE = "metadata.csv"
MOST_TOKENS = 224
"""Half of the decoder's positions, as in OpenAI's decoding.py. 30 s of speech have fewer."""
LONGEST_S = SAMPLES / RATE
TOO_LONG_S = 600.0
SHORTEST_S = 10.0
"""Shorter audio is padded with silence, at no cost, since the encoder always reads 30 s.
Examples are no longer, so that the export, which tries the shortest size, truncates none."""
EXAMPLES = 7
TRIED = 14
"""Recordings from which the examples are chosen."""
ENGLISH = "en"
UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages written without spaces: as in the paper, characters are counted instead of words."""
NEEDED = ("no_timestamps_token_id", "suppress_tokens", "begin_suppress_tokens", "alignment_heads")
NEEDED_LANGUAGES = ("lang_to_id", "task_to_id")
PLAIN = "eager"
"""Attention as matrix products and a softmax, in which ONNX Runtime is fast."""


@dataclass(frozen=True)
class Settings:
    """Where the model comes from, and what it is judged on."""

    run_dir: Path = setting(Path("runs/whisper"), "folder for everything that is written")
    model: str = setting("openai/whisper-tiny.en", "folder or name on the hub of a Whisper model")
    language: str = setting(ENGLISH, "language of the recordings; others need a multilingual model")
    data_dir: Path = setting(
        Path("data/read-english"), "folder with recordings and metadata.csv to judge on"
    )
    heldout: int = setting(60, "recordings that variants are judged on", minimum=1)
    seed: int = setting(1, "start of every random number; equal seeds choose equal recordings")
    again: bool = setting(False, "write run_dir again although it is complete")


def build(model: str, language: str = ENGLISH) -> Transcriber:
    """The model with its weights.

    Raises:
        UsageError: There is no such model, or it does not know the language.
    """
    try:
        logging.disable_progress_bar()  # of a second or less, in the middle of ours
        whisper = WhisperForConditionalGeneration.from_pretrained(
            model, attn_implementation=PLAIN, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"model must be a Whisper model on the hub or its folder, got {model}: {error}."
        ) from error
    return Transcriber(whisper, rules_of(whisper.generation_config, language))


def rules_of(config: GenerationConfig, language: str = ENGLISH) -> Rules:
    """Decoding rules from generation_config.json.

    Raises:
        UsageError: It has no decoding rules, or the model does not know the language.
    """
    speaks_many = getattr(config, "is_multilingual", False)
    needed = NEEDED + (NEEDED_LANGUAGES if speaks_many else ())
    missing = [name for name in needed if getattr(config, name, None) is None]
    if missing:
        raise UsageError(
            f"generation_config.json must have {', '.join(missing)}, got none. Take the file of "
            "the OpenAI model that yours was made from."
        )
    task: tuple[int, ...] = ()
    if speaks_many:
        task = (language_token(config.lang_to_id, language), config.task_to_id["transcribe"])
    elif language != ENGLISH:
        raise UsageError(
            f"language must be {ENGLISH} where the model knows no other, got {language}. Take a "
            "multilingual model: its name does not end in .en."
        )
    plain = config.no_timestamps_token_id
    return Rules(
        prefix=(config.decoder_start_token_id, *task, plain),
        end=config.eos_token_id,
        no_speech=plain - 1,
        banned=tuple(config.suppress_tokens),
        banned_first=tuple(config.begin_suppress_tokens),
        aligned=tuple((layer, head) for layer, head in config.alignment_heads),
        most=MOST_TOKENS,
    )


def language_token(tokens: Mapping[str, int], language: str) -> int:
    """The token for a language of a multilingual model.

    Raises:
        UsageError: It does not know the language.
    """
    token = f"<|{language}|>"
    if token not in tokens:
        known = ", ".join(sorted(name.strip("<|>") for name in tokens))
        raise UsageError(f"language must be one of {known}; got {language}.")
    return tokens[token]


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """The word error rate against `text` in `language`; `table` has each token's bytes."""
    transcripts = [spelled(row, targets["table"]) for row in outputs["tokens"]]
    references, language = targets["text"].tolist(), targets["language"].item()
    return {"word_error_rate": word_error_rate(references, transcripts, language)}


def spelled(tokens: Array, table: Array) -> str:
    """Tokens as text; special tokens have no bytes."""
    return b"".join(table[tokens].tolist()).decode(errors="replace")


def word_error_rate(
    references: Sequence[str], transcripts: Sequence[str], language: str = ENGLISH
) -> float:
    """Edits divided by the words of the references, after normalisation."""
    normal = normalizer(language)
    return float(
        jiwer.wer([normal(text) for text in references], [normal(text) for text in transcripts])
    )


@cache
def normalizer(language: str = ENGLISH) -> Callable[[str], str]:
    """The paper's normalizer; for English without its list of British spellings."""
    if language == ENGLISH:
        return EnglishTextNormalizer({})
    return BasicTextNormalizer(split_letters=language in UNSPACED)


def token_table(model: str, size: int) -> list[bytes]:
    """Each token's bytes; special tokens have none."""
    tokenizer = WhisperTokenizer.from_pretrained(model)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.get_added_vocab())
    table = [b""] * size
    for token, number in tokenizer.get_vocab().items():
        if token not in special:
            table[number] = bytes(byte_of[character] for character in token)
    return table


def recordings(folder: Path) -> Iterator[tuple[str, Array]]:
    """Text and samples of each of a folder's recordings that fits one call.

    Raises:
        DataError: The folder or a recording is invalid.
    """
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["file_name"], row["transcription"]) for row in csv.DictReader(file)]
        for name, text in rows:
            sound = sounds.decode((folder / name).read_bytes(), RATE, TOO_LONG_S)
            if sound.seconds <= LONGEST_S:  # a server splits longer ones
                yield text, sound.samples
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{folder} must hold {TABLE} with file_name and transcription, and the recordings, "
            f"got: {error!r}. training/read_english.py makes such a folder."
        ) from error


def padded(samples: Sequence[Array]) -> Array:
    """Recordings as rows, padded with 0 to the longest."""
    longest = max(round(SHORTEST_S * RATE), *(len(one) for one in samples))
    return np.stack([np.pad(one, (0, longest - len(one))) for one in samples])


def choose(folder: Path, settings: Settings) -> tuple[list[str], list[Array]]:
    """Choose recordings at random, as many as are needed.

    Raises:
        DataError: There are too few.
    """
    found = list(recordings(folder))
    needed = EXAMPLES + settings.heldout
    if len(found) < needed:
        raise DataError(f"{folder} must hold {needed} recordings, got {len(found)}.")
    order = np.random.default_rng(settings.seed).permutation(len(found))[:needed]
    texts, samples = zip(*(found[place] for place in order), strict=True)
    return list(texts), list(samples)


@torch.inference_mode()
def most_confident(model: Transcriber, samples: Sequence[Array]) -> list[int]:
    """Indices of the recordings with the highest minimum token probability, for examples.

    Golden cases compare token by token. Without close decisions they also hold in int8 and on
    another processor.

    Raises:
        DataError: Too few are short enough.
    """
    short = [place for place, one in enumerate(samples) if len(one) <= SHORTEST_S * RATE]
    if len(short) < EXAMPLES:
        raise DataError(
            f"data_dir must hold {EXAMPLES} recordings of at most {SHORTEST_S:g} s, got "
            f"{len(short)} among {len(samples)} chosen. Add short ones."
        )
    least = {
        place: float(model(torch.from_numpy(samples[place])[None])["log_probs"].min())
        for place in short[:TRIED]
    }
    return sorted(least, key=least.__getitem__, reverse=True)[:EXAMPLES]


@flags(Settings)
def main(settings: Settings) -> None:
    """Write a run folder for a Whisper model, as training would."""
    texts, samples = choose(settings.data_dir, settings)
    digest = hashlib.sha256(repr(texts).encode() + b"".join(s.tobytes() for s in samples))
    if run.is_finished(settings, digest.hexdigest()):
        return
    run.begin(settings)
    model = build(settings.model, settings.language).eval()
    table = token_table(settings.model, len(model.banned))
    with console.err.status("transcribing recordings to choose the examples"):
        examples = most_confident(model, samples)
    heldout = [place for place in range(len(samples)) if place not in examples]
    arrays = {
        "examples": {"audio": padded([samples[place] for place in examples])},
        "heldout": {
            "audio": padded([samples[place] for place in heldout]),
            "target/text": np.array([texts[place] for place in heldout]),
            "target/table": np.array(table),
            "target/language": np.array(settings.language),
        },
    }
    write(settings, model, table, arrays, digest.hexdigest())


def write(
    settings: Settings,
    model: Transcriber,
    table: list[bytes],
    arrays: dict[str, Arrays],
    digest: str,
) -> None:
    """Write the run folder, and last of all metrics.json."""
    folder = settings.run_dir
    content = {"weights": model.state_dict(), "run": {}, "settings": as_dict(settings)}
    checkpoint.save(folder / run.CHECKPOINT_FILE, {**content, "data": digest})
    write_json(folder / TOKENS_FILE, [token.decode("latin-1") for token in table])
    write_json(
        folder / SPEECH_FILE,
        {
            "kind": "whisper",
            "sample_rate": RATE,
            "longest_s": LONGEST_S,
            "tokens": TOKENS_FILE,
            "end": model.rules.end,
        },
    )
    for name, tensors in arrays.items():
        with replacing(folder / f"{name}.npz") as draft:
            np.savez_compressed(draft, **tensors)
    Recipe(
        name="whisper",
        build="training/whisper.py:build",
        handler="speech_handler.py",
        judge="training/whisper.py:judge",
        metric="word_error_rate",
        greater_is_better=False,
        budget=0.005,
        pad_values={"audio": 0.0},
        bounds={"samples": (round(SHORTEST_S * RATE), SAMPLES)},
        assets=(SPEECH_FILE, TOKENS_FILE),
        evidence={"model": settings.model, "language": settings.language},
    ).save(folder)
    counts = {name: len(tensors["audio"]) for name, tensors in arrays.items()}
    write_json(folder / run.METRICS_FILE, {"recordings": counts, "data_digest": digest})
    console.out.print(f"{folder} holds {settings.model}", soft_wrap=True)


if __name__ == "__main__":
    console.run_recipe(main)
