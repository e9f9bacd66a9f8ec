"""A Whisper model of transformers as one graph: the same tokens, whoever shares the batch."""

import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from marship.contract import Contract
from marship.errors import DataError, UsageError
from marship.fit.recipe import resolve
from marship.optimizing.passes import int8_blocks
from marship.optimizing.source import ExportedModel
from marship.proof import parity
from marship.serving import sounds
from marship.serving.speech import reader
from recipes import REPOSITORY, run_marship, run_recipe
from whisper_folder import END, RATE, sound, write_recordings, write_whisper
from whistles import wav
from workers import Answer, load_module, opened

MOST = 224
SOME = 48
"""So many tokens are held against those of transformers."""
SPOKEN = Path("/usr/share/pocketsphinx/test/data")
"""Of the Debian package pocketsphinx-testdata."""
NOVEL = "sense_and_sensibility_01_austen_64kb-0880"


@pytest.fixture(scope="module")
def whisper() -> ModuleType:
    """training/whisper.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/whisper.py:build")).__module__]


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    """training/ctranslate2_whisper.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/ctranslate2_whisper.py:main")).__module__]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    return write_whisper(tmp_path_factory.mktemp("whisper") / "model")


@pytest.fixture(scope="module")
def exported(model_dir: Path) -> Path:
    """Its run folder, exported with the parity proof."""
    data = write_recordings(model_dir.parent / "recordings", 12)
    folder = model_dir.parent / "run"
    flags = ["--model", str(model_dir), "--data-dir", str(data), "--heldout", "5"]
    done = run_recipe("whisper", *flags, "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    # other inputs may fall on ties between tokens, which random weights have
    run_marship("export", folder, "--proof-seconds", 10, "--seed", 1)
    return folder


@pytest.mark.parametrize(("seconds", "loudness"), [(0.5, 1.0), (7.3, 0.01), (30.0, 3.0)])
def test_the_spectrogram_is_that_of_transformers(
    whisper: ModuleType, model_dir: Path, seconds: float, loudness: float
) -> None:
    """Short and long, soft and over full scale: within a ten-thousandth of a power of ten."""
    audio = loudness * sound(seconds, 1)
    wanted = WhisperFeatureExtractor()(audio, sampling_rate=RATE, return_tensors="pt")
    got = whisper.build(str(model_dir)).spectrogram(torch.from_numpy(audio)[None])
    assert (got - wanted.input_features).abs().max() < 1e-4


@pytest.mark.parametrize("seed", range(2))
def test_the_tokens_are_those_of_transformers(
    whisper: ModuleType, tmp_path: Path, seed: int
) -> None:
    """Greedy decoding by generate() chooses the same tokens."""
    folder = write_whisper(tmp_path / "model", seed)
    audio = sound(3.0, seed)
    features = WhisperFeatureExtractor()(audio, sampling_rate=RATE, return_tensors="pt")
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    found = model.generate(features.input_features, max_new_tokens=SOME, num_beams=1)[0]
    wanted = found[:SOME].tolist()  # it would go on with later sound where tokens are times
    with torch.no_grad():
        outputs = whisper.build(str(folder))(torch.from_numpy(audio)[None])
    assert len(set(wanted)) > SOME // 8
    assert outputs["tokens"][0, :SOME].tolist() == wanted


def test_a_multilingual_model_is_given_the_spoken_language(
    whisper: ModuleType, tmp_path: Path
) -> None:
    """Another language gives other tokens, and they are those of transformers."""
    folder = write_whisper(tmp_path / "model", multilingual=True)
    audio = sound(3.0, 1)
    features = WhisperFeatureExtractor()(audio, sampling_rate=RATE, return_tensors="pt")
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    got = {}
    for language in ("en", "de"):
        judged = {"language": language, "task": "transcribe", "max_new_tokens": SOME}
        wanted = model.generate(features.input_features, num_beams=1, **judged)[0]
        with torch.no_grad():
            outputs = whisper.build(str(folder), language)(torch.from_numpy(audio)[None])
        got[language] = outputs["tokens"][0, :SOME].tolist()
        assert got[language] == wanted[:SOME].tolist()
    assert got["en"] != got["de"]


def test_languages_and_tasks_are_no_text(whisper: ModuleType, tmp_path: Path) -> None:
    """The table of tokens has bytes for text alone."""
    folder = write_whisper(tmp_path / "model", multilingual=True)
    table = whisper.token_table(str(folder), 300)
    assert table == [bytes([byte]) for byte in range(256)] + [b""] * 44


@pytest.mark.parametrize(
    ("multilingual", "message"),
    [
        (False, "language must be en where the model knows no other, got fi. Take a multilingual"),
        (True, "language must be one of de, en, ja; got fi"),
    ],
)
def test_a_language_that_the_model_does_not_know_is_refused(
    whisper: ModuleType, tmp_path: Path, *, multilingual: bool, message: str
) -> None:
    """One line tells which there are."""
    folder = write_whisper(tmp_path / "model", multilingual=multilingual)
    with pytest.raises(UsageError, match=message):
        whisper.build(str(folder), "fi")


def test_the_graph_is_proven_and_batched(exported: Path) -> None:
    """Export shows that ONNX Runtime agrees, and that neither rows nor padding change an answer."""
    contract = Contract.from_json((exported / "contract.json").read_bytes())
    report = json.loads((exported / "parity.json").read_text())
    assert contract.batch_axis == "batch"
    assert contract.inputs[0].pad_value == 0
    assert report["rows_padded_and_not"]["agrees"]
    assert {case["sizes"]["samples"] for case in report["cases"]} >= {10 * RATE, 30 * RATE}


def test_times_lie_within_the_sound(exported: Path) -> None:
    """With and without padding: no word has a time after the end."""
    run = parity.runner(exported / "model.onnx")
    audio = np.pad(sound(3.0, 5), (0, 4 * RATE))[None]
    outputs = run({"audio": audio})
    assert (outputs["times"] >= 0).all()
    assert outputs["times"].max() <= 3.0


def test_the_run_folder_has_what_the_reader_needs(exported: Path) -> None:
    """speech.json names the table of tokens; every token of text is its byte."""
    about = json.loads((exported / "speech.json").read_text())
    voice = reader(about, exported)
    tokens = np.full((1, MOST), END)
    tokens[0, :3] = list(b"Hi!")
    outputs = {
        "tokens": tokens,
        "log_probs": np.zeros((1, MOST), np.float32),
        "times": np.ones((1, MOST), np.float32),
        "no_speech": np.zeros(1, np.float32),
    }
    assert [segment.text for segment in voice.read(outputs, 2.0)] == ["Hi!"]


def test_served_clips_get_the_same_alone_and_together(exported: Path, tmp_path: Path) -> None:
    """Short, long and of several pieces: text, times and confidence stay as they are."""
    run_marship("package", exported, "--model-store", tmp_path)
    handler = load_module("speech_handler").SpeechHandler
    ear = opened(tmp_path / "whisper.mar", tmp_path / "extracted", handler)
    bodies = [wav(sound(seconds, place)) for place, seconds in enumerate((7.0, 12.0, 5.0, 33.0))]
    sizes = []
    run = ear.handler.session.run
    ear.handler._batcher.run = lambda inputs: sizes.append(len(inputs["audio"])) or run(inputs)
    together = [unhurried(answer) for answer in ear(*({"body": body} for body in bodies))]
    assert max(sizes) == 2
    assert together == [unhurried(ear({"body": body})[0]) for body in bodies]
    assert len({answer["text"] for answer in together}) == len(bodies)
    assert ear({"body": wav(np.zeros(3 * RATE, np.float32))})[0].json()["text"] == ""


def unhurried(answer: Answer) -> dict[str, Any]:
    """An answer without what differs from run to run."""
    return {name: value for name, value in answer.json().items() if name != "timings_ms"}


def test_int8_reaches_into_the_loop(exported: Path, tmp_path: Path) -> None:
    """Products in the loop's body are int8, too, and no row changes another's answer."""
    contract = Contract.from_json((exported / "contract.json").read_bytes())
    target = tmp_path / "int8.onnx"
    int8_blocks.build(ExportedModel(exported / "model.onnx", contract, None), target)
    graph = onnx.load(target).graph
    (body,) = (node.attribute[0].g for node in graph.node if node.op_type == "Loop")
    assert sum(node.op_type == "MatMulNBits" for node in body.node) > 10
    run = parity.runner(target)
    audio = np.stack([sound(2.0, seed) for seed in range(3)])
    alone = [run({"audio": row[None]}) for row in audio]
    together = run({"audio": audio})
    for name, values in together.items():
        joined = np.concatenate([one[name] for one in alone])
        assert np.allclose(values, joined, contract.tolerance.rtol, contract.tolerance.atol), name


def test_a_model_that_is_none_is_refused(whisper: ModuleType, tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(UsageError, match="must be a Whisper model"):
        whisper.build(str(tmp_path))


def test_recordings_must_be_enough(whisper: ModuleType, tmp_path: Path) -> None:
    """Three recordings cannot prove an export and judge variants."""
    settings = whisper.Settings(heldout=1)
    with pytest.raises(DataError, match="must hold 8 recordings, got 3"):
        whisper.choose(write_recordings(tmp_path / "few", 3), settings)


def test_word_errors_are_counted_after_normalisation(whisper: ModuleType) -> None:
    """Numbers, case and punctuation make no error; another word does."""
    assert whisper.word_error_rate(["ten of clubs"], ["10 of Clubs."]) == 0
    assert whisper.word_error_rate(["seven of hearts"], ["seven of hats"]) == pytest.approx(1 / 3)
    assert whisper.word_error_rate(["Schöne Grüße!"], ["schöne grüße"], "de") == 0
    assert whisper.word_error_rate(["你好。"], ["你們"], "zh") == 0.5


def test_a_ctranslate2_file_becomes_the_same_weights(
    converter: ModuleType, model_dir: Path
) -> None:
    """Joined projections are taken apart, and every tensor finds its name."""
    state = WhisperForConditionalGeneration.from_pretrained(model_dir).state_dict()
    variables = converter.read_variables(ctranslate2_file(state, layers=2))
    got = dict(converter.renamed(variables))
    assert set(got) == set(state) - {"proj_out.weight"}
    for name, array in got.items():
        assert np.array_equal(array, state[name].numpy().astype(np.float16)), name


def test_another_file_is_no_whisper(converter: ModuleType) -> None:
    """A file of another format says so."""
    with pytest.raises(DataError, match="WhisperSpec of version 6"):
        converter.read_variables(struct.pack("<IH", 5, 3) + b"Xx\0" + struct.pack("<I", 1))


def ctranslate2_file(state: dict[str, torch.Tensor], layers: int) -> bytes:
    """A file as CTranslate2 4 writes it, in float16: names, shapes, types, bytes, aliases."""
    found = {}
    for part in ("encoder", "decoder"):
        found[f"{part}/num_heads"] = np.array(2, np.int16)
        found[f"{part}/position_encodings/encodings"] = f"model.{part}.embed_positions.weight"
        found |= norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        for layer in range(layers):
            place, source = f"{part}/layer_{layer}", f"model.{part}.layers.{layer}"
            blocks = {"self_attention": ("self_attn", ["qkv", "o"])}
            if part == "decoder":
                blocks["attention"] = ("encoder_attn", ["q", "kv", "o"])
            for block, (attention, groups) in blocks.items():
                found |= norm(f"{place}/{block}/layer_norm", f"{source}.{attention}_layer_norm")
                for number, letters in enumerate(groups):
                    names = [f"{source}.{attention}.{PROJECTION[one]}" for one in letters]
                    found |= joined(f"{place}/{block}/linear_{number}", names, state)
            found |= norm(f"{place}/ffn/layer_norm", f"{source}.final_layer_norm")
            for number in (0, 1):
                found |= joined(f"{place}/ffn/linear_{number}", [f"{source}.fc{number + 1}"], state)
    for number in (1, 2):
        for kind in ("weight", "bias"):
            found[f"encoder/conv{number}/{kind}"] = f"model.encoder.conv{number}.{kind}"
    found["decoder/embeddings/weight"] = "model.decoder.embed_tokens.weight"
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(found))
    for name, value in found.items():
        array = state[value].numpy().astype(np.float16) if isinstance(value, str) else value
        number = {"float16": 4, "int16": 2}[array.dtype.name]
        content += text(name) + struct.pack("<B", array.ndim)
        content += struct.pack(f"<{array.ndim}I", *array.shape)
        content += struct.pack("<BI", number, array.nbytes) + array.tobytes()
    aliases = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return content + struct.pack("<I", 1) + aliases


PROJECTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def norm(place: str, source: str) -> dict[str, str]:
    """A layer norm's two tensors."""
    return {f"{place}/gamma": f"{source}.weight", f"{place}/beta": f"{source}.bias"}


def joined(place: str, names: list[str], state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Linear layers one below the other; one without a bias has zeros."""
    weights = [state[f"{name}.weight"] for name in names]
    biases = [
        state.get(f"{name}.bias", torch.zeros(len(weight)))
        for name, weight in zip(names, weights, strict=True)
    ]
    return {
        f"{place}/{kind}": torch.cat(parts).numpy().astype(np.float16)
        for kind, parts in (("weight", weights), ("bias", biases))
    }


def text(value: str) -> bytes:
    """A length and the bytes, with a zero at their end."""
    content = value.encode() + b"\0"
    return struct.pack("<H", len(content)) + content


def test_tiny_en_transcribes_read_english(whisper: ModuleType, tmp_path: Path) -> None:
    """The published weights, by way of CTranslate2's file, hear a command and a novel."""
    folder = tmp_path / "tiny.en"
    done = run_recipe("ctranslate2_whisper", "--model-dir", str(folder))
    assert done.returncode == 0, done.stderr
    model, table = whisper.build(str(folder)), np.array(whisper.token_table(str(folder), 51864))
    raw = np.fromfile(SPOKEN / "goforward.raw", "<i2").astype(np.float32) / 32768
    novel = sounds.decode((SPOKEN / f"librivox/{NOVEL}.wav").read_bytes(), RATE, 30).samples
    with torch.no_grad():
        outputs = model(torch.from_numpy(whisper.padded([raw, novel])))
    command, sentence = (whisper.spelled(row.numpy(), table) for row in outputs["tokens"])
    assert command == " Go forward 10 meters."
    assert sentence == " He was not an old-sposed young man."  # as transformers and CTranslate2
