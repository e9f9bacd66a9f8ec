"""Recognize speech: train a CTC model on a folder of recordings and transcriptions.

    python training/speech.py --data-dir commands

The folder holds recordings and metadata.csv, see training/audiofolder.py. docs/speech.md lists
the results.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import speech_evaluation as evaluation
import torch
from audio_augment import Augmentation, Augmented
from audiofolder import AudioFolder, Recordings, load
from recognizer import FRAME_S, Recognizer, build, make_mel
from speech_network import STRIDE
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
FIRST_LETTER = 0x4E00
"""The first of 20,000 consecutive Unicode letters without a space."""
ROWS = {"examples": 16, "calibration": 256, "heldout": 2000}
LARGEST_BYTES = {"examples": 8 << 20, "calibration": 32 << 20, "heldout": 128 << 20}
"""Most bytes that are written for each of the later steps."""


@dataclass(frozen=True)
class Settings(run.RunSettings):
    """The settings of every run, and this recipe's own."""

    run_dir: Path = setting(Path("runs/speech"), "folder for everything that the run writes")
    data_dir: Path | None = setting(None, "folder with recordings and metadata.csv")
    epochs: int = setting(12, "passes over the training data", minimum=1)
    batch_size: int = setting(16, "recordings for each step", minimum=1)
    learning_rate: float = setting(2e-3, "largest step size of AdamW")
    weight_decay: float = setting(0.05, "of kernels and matrices; others have none")
    warmup: float = setting(0.1, "share of the steps in which the rate rises", maximum=1)
    average: float = setting(
        0.995, "decay of the weights' moving average, which is kept", minimum=0, maximum=0.99999
    )
    sample_rate: int = setting(16000, "samples a second that the model reads", minimum=4000)
    longest_s: float = setting(30.0, "longest recording, in training and in a request", minimum=1)
    bands: int = setting(40, "bands of the mel spectrogram, a multiple of 4", minimum=8)
    width: int = setting(144, "channels of the network", minimum=8)
    blocks: int = setting(6, "blocks of the network; each sees 80 ms further", minimum=1)
    dropout: float = setting(0.1, "share of a block's channels dropped", minimum=0, maximum=0.9)
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
        mel=make_mel(settings.sample_rate, settings.bands),  # on the CPU, wherever the model is
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


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def validated(settings: Settings) -> Settings:
    """Validate the settings.

    Raises:
        UsageError: One of them is invalid.
    """
    if settings.data_dir is None:
        raise UsageError("data_dir must be a folder of recordings, got none. Give --data-dir.")
    if settings.bands % 4:
        raise UsageError(f"bands must be a multiple of 4, got {settings.bands}.")
    if settings.words not in ("known", "any"):
        raise UsageError(f"words must be known or any, got {settings.words!r}.")
    return settings


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
    settings = validated(settings)
    accelerator = start(settings)
    folder = load(settings.data_dir, settings.sample_rate, settings.longest_s, min_duration_s)
    settings = with_symbols(settings, folder)
    if run.is_finished(settings, folder.digest):
        return
    places = hold_out(len(folder.train), settings.validation, settings.seed)
    names = ("sample_rate", "bands", "width", "blocks", "symbols", "dropout")
    model = build(**{name: getattr(settings, name) for name in names})
    fitted = fit(make_task(model, folder, places, settings), settings, accelerator)
    if accelerator.is_main_process:
        write_results(model.cpu(), folder, places, settings, fitted)


def hold_out(count: int, share: float, seed: int) -> tuple[Array, Array]:
    """Indices of the recordings to train on, and of those held out."""
    order = np.random.default_rng(seed).permutation(count)
    watched = min(count - 1, max(1, round(share * count)))
    return np.sort(order[watched:]), np.sort(order[:watched])


def known_words(folder: AudioFolder) -> list[str]:
    """All words of the training texts."""
    return sorted({word for text in folder.train.texts for word in text.split()})


def evaluate(model: Recognizer, folder: AudioFolder, settings: Settings) -> dict[str, Any]:
    """Error rates on the test recordings: of each decoder, and of the chosen one in detail."""
    log_probs = evaluation.log_probs_of(model, folder.test)
    lexicon = ctc.lexicon_of(known_words(folder), folder.alphabet)
    ways = {
        "greedy": ctc.greedy,
        "any": ctc.beam,
        "known": partial(ctc.beam, lexicon=lexicon),
    }
    transcripts = {
        name: evaluation.transcribe(log_probs, folder.alphabet, read) for name, read in ways.items()
    }
    chosen = transcripts[settings.words]
    return {
        **asdict(evaluation.errors(folder.test.texts, chosen)),
        "ways": {
            n: asdict(evaluation.errors(folder.test.texts, t)) for n, t in transcripts.items()
        },
        "speakers": {n: asdict(e) for n, e in evaluation.by_speaker(folder.test, chosen).items()},
        "mistakes": evaluation.mistakes(folder.test, chosen),
    }


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
    results = evaluate(model, folder, settings)
    write_json(
        settings.run_dir / SPEECH_FILE,
        {
            "kind": "ctc",
            "sample_rate": settings.sample_rate,
            "longest_s": settings.longest_s,
            "alphabet": folder.alphabet,
            "frame_s": STRIDE * model.mel.hop / settings.sample_rate,
            "words": known_words(folder) if settings.words == "known" else None,
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
    print_metrics(results, len(folder.test))


def print_metrics(results: dict[str, Any], recordings: int) -> None:
    """Print the metrics."""
    from rich.table import Table

    title = f"Word error rate {results['word_error_rate']:.4f} on {recordings} recordings"
    table = Table("", "words", "word errors", "character errors", title=title)
    for name, found in (*results["ways"].items(), *results["speakers"].items()):
        rates = (found["word_error_rate"], found["character_error_rate"])
        table.add_row(name, str(found["words"]), *(f"{rate:.4f}" for rate in rates))
    console.out.print(table)


if __name__ == "__main__":
    console.run_recipe(main)
