"""Recognize speech: train a CTC model on a folder of recordings and transcriptions.

    python training/speech.py --data-dir commands

The folder holds recordings and metadata.csv, see training/audiofolder.py. docs/speech.md lists
the results.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import speech_evaluation as evaluation
import torch
import whisper_encoder
from audio_augment import Augmentation, Augmented
from audiofolder import AudioFolder, Recordings, load
from recognizer import FRAME_S, Recognizer, build, make_mel
from torch import nn
from torch.nn import functional

from marship import console
from marship.contract import Array, Arrays
from marship.errors import DataError, UsageError
from marship.fit import run
from marship.fit.loop import Task, fit, start, steps, warmup_cosine
from marship.fit.recipe import Recipe
from marship.fit.run import Fitted
from marship.serving.speech import ctc
from marship.settings import flags, setting
from marship.storage import write_json

SPEECH_FILE = "speech.json"
CONFUSION_FILE = "confusion.png"
FIRST_LETTER = 0x4E00
"""The first of 20,000 consecutive Unicode letters without a space."""
ROWS = {"examples": 16, "calibration": 256, "heldout": 2000}
LARGEST_BYTES = {"examples": 8 << 20, "calibration": 32 << 20, "heldout": 128 << 20}
"""Most bytes that are written for each of the later steps."""
FROM_SCRATCH = {
    "epochs": 12,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "average": 0.995,
    "bands": 40,
    "width": 144,
    "blocks": 6,
}
FINE_TUNED = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-4, "average": 0.99}
"""Default settings by backbone."""
FASTER = 10
"""How many times as fast as the pretrained layers the new one learns."""
SHAPE = ("backbone", "sample_rate", "bands", "width", "blocks", "symbols", "dropout")
"""Settings that the model is built from."""


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The settings of every run, and this recipe's own."""

    run_dir: Path = setting(Path("runs/speech"), "folder for everything that the run writes")
    data_dir: Path | None = setting(None, "folder with recordings and metadata.csv")
    backbone: str = setting(
        whisper_encoder.TINY, "a Whisper to fine-tune, also a folder; none: train from scratch"
    )
    frozen: int | None = setting(
        None,
        "lower layers of the backbone that are not trained; 0 trains all; by default all but one",
        minimum=0,
    )
    epochs: int | None = setting(None, "passes over the training data; by backbone", minimum=1)
    batch_size: int | None = setting(None, "recordings for each step; by backbone", minimum=1)
    learning_rate: float | None = setting(
        None, "largest step size of AdamW; by backbone", minimum=0
    )
    weight_decay: float = setting(0.05, "of kernels and matrices; others have none")
    warmup: float = setting(0.1, "share of the steps in which the rate rises", maximum=1)
    average: float | None = setting(
        None, "decay of the weights' moving average; by backbone", minimum=0, maximum=0.99999
    )
    sample_rate: int = setting(16000, "samples a second that the model reads", minimum=4000)
    longest_s: float = setting(30.0, "longest recording, in training and in a request", minimum=1)
    bands: int | None = setting(None, "bands of the mel spectrogram; by backbone", minimum=8)
    width: int | None = setting(None, "channels of the network; by backbone", minimum=8)
    blocks: int | None = setting(None, "blocks of the network; by backbone", minimum=1)
    dropout: float = setting(
        0.1,
        "share of channels dropped: of each block, or before a backbone's last layer",
        minimum=0,
        maximum=0.9,
    )
    speed: float = setting(0.15, "largest change of speed, as a share", minimum=0, maximum=0.5)
    volume: float = setting(6.0, "largest change of loudness, in decibels", minimum=0)
    join: float = setting(0.1, "share appended to another recording", minimum=0, maximum=1)
    warp: float = setting(0.15, "largest change of all frequencies, as a share", minimum=0)
    colour: float = setting(3.0, "random filters, decibels for each cosine", minimum=0)
    echo: float = setting(0.3, "share of rows with reverberation", minimum=0, maximum=1)
    noise: float = setting(0.7, "share of rows that noise is added to", minimum=0, maximum=1)
    mask_bands: float = setting(0.2, "widest silenced share of the bands", minimum=0, maximum=1)
    mask_s: float = setting(0.08, "longest silenced time, in seconds", minimum=0)
    words: str = setting(
        "known", "known: output only words of the training texts; any: no restriction"
    )
    validation: float = setting(
        0.05, "share of the training recordings to watch", minimum=0.001, maximum=0.5
    )
    symbols: int | None = setting(
        None, "number of symbols that the data must have; else as many as it has", minimum=2
    )


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Error rates of greedy decoding, against texts as symbols padded with 0.

    Each symbol is mapped to some letter, since only word boundaries matter: the space is one.
    """
    letters = [" ", *(chr(FIRST_LETTER + n) for n in range(outputs["log_probs"].shape[2]))]
    references = [evaluation.spelled(tuple(row[row > 0]), letters) for row in targets["symbols"]]
    transcripts = [
        evaluation.spelled(ctc.greedy(row[:count]), letters)
        for row, count in zip(outputs["log_probs"], outputs["frames"], strict=True)
    ]
    found = evaluation.errors(references, transcripts)
    return {
        "word_error_rate": found.word_error_rate,
        "character_error_rate": found.character_error_rate,
    }


def min_duration_s(text: str) -> float:
    """Shortest recording of a text: a frame for each character, and a blank in double letters."""
    doubled = sum(a == b for a, b in pairwise(text))
    return (len(text) + doubled) * FRAME_S


def make_task(
    model: Recognizer, folder: AudioFolder, places: tuple[Array, Array], settings: Settings
) -> Task:
    """Training data, loss, optimizer and validation."""
    learned, watched = places[0], folder.train.part(places[1])
    train = Augmented(
        folder.train,
        learned,
        alphabet=folder.alphabet,
        rate=settings.sample_rate,
        # on the CPU, wherever the model is
        mel=make_mel(settings.backbone, settings.sample_rate, settings.bands),
        changes=augmentation(settings),
    )
    optimizer = make_optimizer(model, settings)
    total = steps(settings, train)

    def loss(model: nn.Module, groups: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        characters = sum(int(group["characters"].sum()) for group in groups)
        return torch.stack([ctc_loss(model, group) for group in groups]).sum() / characters

    def validate(model: nn.Module) -> dict[str, float]:
        log_probs = evaluation.log_probs_of(model, watched)
        found = evaluation.errors(
            watched.texts, evaluation.transcribe(log_probs, folder.alphabet, ctc.greedy)
        )
        return {"wer": found.word_error_rate, "cer": found.character_error_rate}

    return Task(
        model=model,
        train=train,
        loss=loss,
        optimizer=optimizer,
        data_digest=folder.digest,
        schedule=warmup_cosine(optimizer, warmup=round(settings.warmup * total), total=total),
        clip_norm=1.0,
        average=settings.average,
        validate=validate,  # reported only: the last epoch's weights, at rate 0, are kept
        collate=lambda batch: batch,  # the dataset returns batches
    )


def ctc_loss(model: nn.Module, group: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of all rows' losses."""
    outputs = model(group["power"], group["frames"])
    return functional.ctc_loss(
        outputs["log_probs"].float().transpose(0, 1),
        group["symbols"],
        outputs["frames"],
        group["characters"],
        reduction="sum",
        zero_infinity=True,  # sped up, a recording may be too short for its text
    )


def augmentation(settings: Settings) -> Augmentation:
    """The settings of data augmentation."""
    return Augmentation(
        speed=settings.speed,
        volume_db=settings.volume,
        join=settings.join,
        warp=settings.warp,
        colour_db=settings.colour,
        echo=settings.echo,
        noise=settings.noise,
        bands=settings.mask_bands,
        gap_s=settings.mask_s,
    )


def make_optimizer(model: Recognizer, settings: Settings) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay, and a new last layer learns faster than the others."""
    last = [] if settings.backbone == "none" else [*model.network.spell.parameters()]
    others = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in last)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": last, "weight_decay": 0.0, "lr": FASTER * settings.learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def validated(settings: Settings) -> Settings:
    """Validate the settings.

    Raises:
        UsageError: One of them is invalid.
    """
    if settings.data_dir is None:
        raise UsageError("data_dir must be a folder of recordings, got none. Give --data-dir.")
    if settings.words not in ("known", "any"):
        raise UsageError(f"words must be known or any, got {settings.words!r}.")
    if settings.backbone == "none":
        if settings.frozen is not None:
            raise UsageError(
                "frozen must be left out without a backbone, got "
                f"{settings.frozen}. Leave out --frozen, or give --backbone."
            )
        settings = with_defaults(settings, FROM_SCRATCH)
        if settings.bands % 4:
            raise UsageError(f"bands must be a multiple of 4, got {settings.bands}.")
    elif settings.longest_s > whisper_encoder.LONGEST_S:
        raise UsageError(
            f"longest_s must be at most {whisper_encoder.LONGEST_S} with {settings.backbone}, "
            f"got {settings.longest_s:g}. Use --backbone none for longer recordings."
        )
    return settings


def with_defaults(settings: Settings, defaults: dict[str, float]) -> Settings:
    """The settings with these in place of None."""
    unset = {name: value for name, value in defaults.items() if getattr(settings, name) is None}
    return replace(settings, **unset)


def with_weights(settings: Settings) -> tuple[Settings, dict[str, torch.Tensor]]:
    """The settings with the backbone's, and its weights; without a backbone none.

    Raises:
        UsageError: The backbone has another shape than the settings.
        DataError: It cannot be read.
    """
    if settings.backbone == "none":
        return settings, {}
    weights = whisper_encoder.pretrained(settings.backbone)
    shape = whisper_encoder.shape_of(weights)
    settings = with_defaults(settings, FINE_TUNED | shape | {"frozen": shape["blocks"] - 1})
    if settings.frozen > shape["blocks"]:
        raise UsageError(
            f"frozen must be at most {shape['blocks']}, the layers of {settings.backbone}, got "
            f"{settings.frozen}."
        )
    for name, value in shape.items():
        if getattr(settings, name) != value:
            raise UsageError(
                f"{name} must be {value}, as in {settings.backbone}, got "
                f"{getattr(settings, name)}. Leave out --{name}, or use --backbone none."
            )
    return settings, weights


def with_symbols(settings: Settings, folder: AudioFolder) -> Settings:
    """The settings with the number of symbols.

    Raises:
        DataError: The data have another number than `--symbols`.
    """
    symbols = len(folder.alphabet) + 1
    if settings.symbols not in (None, symbols):
        raise DataError(
            f"{settings.data_dir} must hold {settings.symbols - 1} characters, got {symbols - 1}. "
            "Leave out --symbols, or look for texts that are missing."
        )
    return replace(settings, symbols=symbols)


@flags(Settings)
def main(settings: Settings) -> None:
    """Train a CTC model on a folder of recordings and transcriptions."""
    settings, weights = with_weights(validated(settings))
    accelerator = start(settings)
    folder = load(settings.data_dir, settings.sample_rate, settings.longest_s, min_duration_s)
    settings = with_symbols(settings, folder)
    if weights:  # others make another run, as other data do
        digest = folder.digest + whisper_encoder.digest_of(weights)
        folder = replace(folder, digest=hashlib.sha256(digest.encode()).hexdigest())
    if run.is_finished(settings, folder.digest):
        return
    places = hold_out(len(folder.train), settings.validation, settings.seed)
    model = build(**{name: getattr(settings, name) for name in SHAPE})
    if weights:
        model.network.load_state_dict(weights, strict=False)  # but for the last layer
        model.network.freeze(settings.frozen)
    fitted = fit(make_task(model, folder, places, settings), settings, accelerator)
    if accelerator.is_main_process:
        write_results(model.cpu(), folder, places, settings, fitted)


def hold_out(count: int, share: float, seed: int) -> tuple[Array, Array]:
    """Indices of the recordings to train on, and of those held out."""
    order = np.random.default_rng(seed).permutation(count)
    watched = min(count - 1, max(1, round(share * count)))
    return np.sort(order[watched:]), np.sort(order[:watched])


def rows(name: str, recordings: Recordings, alphabet: Sequence[str], seed: int) -> Arrays:
    """Recordings for the later steps, padded to one length, and their texts as symbols."""
    most = min(ROWS[name], LARGEST_BYTES[name] // (4 * int(recordings.sizes().max())))
    order = np.random.default_rng(seed).permutation(len(recordings))[: max(1, most)]
    number = {character: place for place, character in enumerate(alphabet, 1)}
    texts = [np.array([number[one] for one in recordings.texts[place]]) for place in order]
    return {
        "audio": padded([recordings.audio(place) for place in order]),
        "target/symbols": padded(texts),
    }


def padded(arrays: Sequence[Array]) -> Array:
    """Arrays as rows of one array, padded with 0 on the right."""
    longest = max(len(array) for array in arrays)
    return np.stack([np.pad(array, (0, longest - len(array))) for array in arrays])


def write_results(
    model: Recognizer,
    folder: AudioFolder,
    places: tuple[Array, Array],
    settings: Settings,
    fitted: Fitted,
) -> None:
    """Evaluate the model, and write the files for the later steps."""
    learned, watched = places
    picture = settings.run_dir / CONFUSION_FILE
    results = evaluation.evaluate(model, folder, settings.words, picture)
    write_json(
        settings.run_dir / SPEECH_FILE,
        {
            "kind": "ctc",
            "sample_rate": settings.sample_rate,
            "longest_s": settings.longest_s,
            "alphabet": folder.alphabet,
            "frame_s": 2 * model.mel.hop / settings.sample_rate,
            "words": evaluation.known_words(folder) if settings.words == "known" else None,
        },
    )
    counts = {"train": len(learned), "validation": len(watched), "test": len(folder.test)}
    shown = rows("examples", folder.test, folder.alphabet, settings.seed)
    recipe = Recipe(
        name="speech",
        build="training/recognizer.py:build",
        handler="speech_handler.py",
        judge="training/speech.py:judge",
        metric="word_error_rate",
        greater_is_better=False,
        budget=0.005,
        pad_values={"audio": 0.0},
        bounds={"samples": (1, round(settings.longest_s * settings.sample_rate))},
        output_axes=("log_probs:1=frames",),
        assets=(SPEECH_FILE,),
        evidence={"data_digest": folder.digest, "recordings": counts},
    )
    run.finish(
        settings,
        fitted,
        recipe,
        metrics={"test": results, "recordings": counts},
        arrays={
            "examples": {"audio": shown["audio"]},
            "calibration": rows(
                "calibration", folder.train.part(watched), folder.alphabet, settings.seed
            ),
            "heldout": rows("heldout", folder.test, folder.alphabet, settings.seed),
        },
    )
    evaluation.print_metrics(results, len(folder.test))


if __name__ == "__main__":
    console.run_recipe(main)
