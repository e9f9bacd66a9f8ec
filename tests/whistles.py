"""A tiny speech model, packed: a letter for each pitch, so that what is heard is known exactly."""

import io
import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from marship.contract import Array, GoldenCase
from marship.packaging.mar import Contents, build
from marship.packaging.step import PackageSettings
from marship.proof import graph, parity
from models import write_model
from workers import HANDLERS

RATE = 16_000
FRAME = 320
LETTERS = "abcdefgh "
DEFECT = "!"
LETTER_S, GAP_S = 0.1, 0.06
PIECE_S = 2.0
ABOUT = {
    "kind": "ctc",
    "sample_rate": RATE,
    "longest_s": PIECE_S,
    "alphabet": list(LETTERS),
    "frame_s": FRAME / RATE,
    "words": None,
}
TRIED = 16  # rounds of the loop that take about 1 ms in all


def pitch_hz(letter: str) -> float:
    """Whole periods in a frame, so that no pitch is heard in another's place."""
    return 400.0 + 200.0 * (LETTERS + DEFECT).index(letter)


def whistle(text: str) -> Array:
    """The letters, each as 0.1 s of its pitch and 0.06 s of silence: float32 (samples,)."""
    places = np.arange(round(LETTER_S * RATE)) / RATE
    gap = np.zeros(round(GAP_S * RATE))
    parts = [gap]
    for letter in text:
        parts += [0.5 * np.sin(2 * np.pi * pitch_hz(letter) * places), gap]
    return np.concatenate(parts).astype(np.float32)


def long_whistle(*texts: str, pause_s: float = 1.2) -> Array:
    """Texts with so long a pause between them that each is a segment of its own."""
    pause = np.zeros(round(pause_s * RATE), np.float32)
    return np.concatenate([part for text in texts for part in (whistle(text), pause)])


def wav(samples: Array, rate: int = RATE) -> bytes:
    """A WAV file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def said(text: str) -> bytes:
    """A text as a WAV file."""
    return wav(whistle(text))


def write_ear(path: Path, slow_ms: int = 0) -> Path:
    """`audio` (batch, samples), `length` (batch,) to `log_probs` (batch, steps, 10), `frames`.

    Each frame of 20 ms has the energy of each pitch as a letter's score, and the blank's is 8. A
    frame of DEFECT passes the contract and fails in the run: a table has no place for it.

    Args:
        path: Where to write it.
        slow_ms: About how long a call takes at least.
    """
    taken = [
        helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", "samples"]),
        helper.make_tensor_value_info("length", TensorProto.INT64, ["batch"]),
    ]
    given = [
        helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["batch", "steps", 10]),
        helper.make_tensor_value_info("frames", TensorProto.INT64, ["batch"]),
    ]
    pitches = np.array([pitch_hz(letter) for letter in LETTERS + DEFECT])
    angles = 2 * np.pi / RATE * pitches[:, None] * np.arange(FRAME)
    waves = 2 / FRAME * np.concatenate([np.sin(angles), np.cos(angles)])[:, None]
    constants = {
        "waves": waves.astype(np.float32),
        "one": np.array([1]),
        "halves": np.array([10, 10]),
        "letters": np.array([9, 1]),
        "scale": np.array(80, np.float32),
        "faint": np.array(0.1, np.float32),
        "places": np.zeros(1, np.float32),
        "blank": np.array([[8.0]], np.float32),
        "frame": np.array(FRAME),
        "almost": np.array(FRAME - 1),
        "rounds": np.array(TRIED * slow_ms),
        "true": np.array(True),
        "last": np.array([2]),
        "zero": np.array(0, np.float32),
        "wide": np.full((1, 30_000), 0.5, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["audio", "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "waves"], ["parts"], strides=[FRAME]),
        helper.make_node("Mul", ["parts", "parts"], ["squares"]),
        helper.make_node("Split", ["squares", "halves"], ["sines", "cosines"], axis=1),
        helper.make_node("Add", ["sines", "cosines"], ["all_energies"]),
        helper.make_node("Split", ["all_energies", "letters"], ["energies", "defect"], axis=1),
        helper.make_node("ReduceMax", ["defect"], ["worst"], keepdims=0),
        helper.make_node("Greater", ["worst", "faint"], ["is_defect"]),
        helper.make_node("Cast", ["is_defect"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["places", "place"], ["nothing"]),
        helper.make_node("Loop", ["rounds", "true", "nothing"], ["waited"], body=_round()),
        helper.make_node("Mul", ["energies", "scale"], ["scores"]),
        helper.make_node("Transpose", ["scores"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["rows", "last"], ["highest"], keepdims=1),
        helper.make_node("Mul", ["highest", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "blank"], ["blanks"]),
        helper.make_node("Concat", ["blanks", "rows"], ["joined"], axis=2),
        helper.make_node("Add", ["joined", "waited"], ["late"]),
        helper.make_node("LogSoftmax", ["late"], ["log_probs"], axis=-1),
        helper.make_node("Add", ["length", "almost"], ["up"]),
        helper.make_node("Div", ["up", "frame"], ["frames"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return write_model(path, helper.make_graph(nodes, "ear", taken, given, initializers))


def _round() -> object:
    """A round of waiting: sums that come to nothing."""
    scalar = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in ("before", "after")]
    inputs = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
    ]
    nodes = [
        helper.make_node("Add", ["wide", "before"], ["shifted"]),
        helper.make_node("Sin", ["shifted"], ["sines_"]),
        helper.make_node("ReduceMax", ["sines_"], ["most"], keepdims=0),
        helper.make_node("Sub", ["most", "most"], ["after"]),
        helper.make_node("Identity", ["go_on"], ["goes_on"]),
    ]
    goes_on = helper.make_tensor_value_info("goes_on", TensorProto.BOOL, [])
    return helper.make_graph(nodes, "round", [*inputs, scalar[0]], [goes_on, scalar[1]])


def pack_ear(folder: Path, *, name: str = "ear", slow_ms: int = 0, **settings: object) -> Path:
    """The archive, in `folder`, with the speech handler."""
    model = write_ear(folder / "model.onnx", slow_ms)
    found = graph.contract_of(model)
    audio, length = found.inputs
    contract = replace(
        found,
        inputs=(replace(audio, pad_value=0.0), length),
        batch_axis="batch",
        bounds={"samples": (FRAME, None)},
    )
    samples = whistle("abc")
    inputs = {"audio": samples[None], "length": np.array([len(samples)])}
    about = folder / "speech.json"
    about.write_text(json.dumps(ABOUT))
    return build(
        Contents(
            name=name,
            handler=HANDLERS / "speech_handler.py",
            model=model,
            contract=contract,
            golden=[GoldenCase(inputs, parity.runner(model)(inputs))],
            evidence={},
            assets=(about,),
        ),
        PackageSettings(**{"model_store": folder, **settings}),
    )
