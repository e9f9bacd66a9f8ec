"""The speech recipe: from a folder of recordings to a model that is exported and packed."""

import json
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from matplotlib.image import imread

from marship.contract import Contract
from marship.errors import DataError, UsageError
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import Recipe, resolve
from marship.serving.model.batch import paddable_axes
from marship.serving.speech.ctc import CtcReader
from recipes import REPOSITORY, run_marship, run_recipe
from tone_words import RATE, WORDS, write_tone_words
from whisper_folder import AS_PUBLISHED, write_whisper

SMALL = ["--backbone", "none", "--bands", "16", "--width", "32", "--blocks", "2"]
QUICK = ["--batch-size", "16", "--average", "0.9", "--longest-s", "4", "--sample-rate", str(RATE)]


@pytest.fixture(scope="module")
def speech() -> ModuleType:
    """training/speech.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/speech.py:main")).__module__]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tone words."""
    return write_tone_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def speech_run(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """The run folder of a small network that learned them, exported."""
    folder = tmp_path_factory.mktemp("speech")
    flags = ["--run-dir", str(folder), "--data-dir", str(words), "--epochs", "12", *SMALL, *QUICK]
    flags += ["--learning-rate", "0.006", "--warp", "0.02", "--speed", "0.05", "--dropout", "0"]
    done = run_recipe("speech", *flags)
    assert done.returncode == 0, done.stderr
    assert "Word error rate" in done.stdout
    run_marship("export", folder, "--proof-seconds", 10)
    return folder


@pytest.fixture(scope="module")
def whisper_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Whisper with random weights."""
    return write_whisper(tmp_path_factory.mktemp("whisper") / "model", **AS_PUBLISHED)


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory: pytest.TempPathFactory, words: Path, whisper_dir: Path) -> Path:
    """The run folder of that Whisper, fine-tuned for a moment and exported."""
    folder = tmp_path_factory.mktemp("tuned")
    flags = ["--run-dir", str(folder), "--data-dir", str(words), "--epochs", "2", *QUICK]
    done = run_recipe("speech", *flags, "--backbone", str(whisper_dir), "--longest-s", "30")
    assert done.returncode == 0, done.stderr
    run_marship("export", folder, "--proof-seconds", 10)
    return folder


def metrics_of(run_dir: Path) -> dict[str, Any]:
    """metrics.json."""
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return found


def about(run_dir: Path) -> dict[str, Any]:
    """speech.json."""
    found: dict[str, Any] = json.loads((run_dir / "speech.json").read_text())
    return found


def trained(speech: ModuleType, run_dir: Path) -> Any:
    """The model, built and loaded from its run folder."""
    settings = json.loads((run_dir / "settings.json").read_text())
    model = speech.build(**{name: settings[name] for name in speech.SHAPE})
    load_weights(run_dir / "checkpoint.pt", model)
    return model.eval()


def test_it_learns_words(speech_run: Path) -> None:
    """Nearly all words of held-out recordings are transcribed right, for both speakers."""
    test = metrics_of(speech_run)["test"]
    assert test["word_error_rate"] < 0.1
    assert set(test["speakers"]) == {"low", "high"}
    assert sum(row["words"] for row in test["speakers"].values()) == test["words"]
    assert all(row["word_error_rate"] < 0.15 for row in test["speakers"].values())


def test_known_words_are_at_least_as_accurate_as_any(speech_run: Path) -> None:
    """Each way to read is judged; the words of train alone help, and greedy is the plainest."""
    ways = metrics_of(speech_run)["test"]["ways"]
    assert set(ways) == {"greedy", "any", "known"}
    assert ways["known"]["word_error_rate"] <= ways["any"]["word_error_rate"]


def test_confused_words_are_those_of_the_mistakes(speech: ModuleType) -> None:
    """Words left out and inserted are paired with no word; right ones with themselves."""
    evaluation = speech.evaluation
    counts = evaluation.confusions(["a b c", "b b", "a"], ["a c c", "b", "a d"])
    none = evaluation.NO_WORD
    want = {("a", "a"): 2, ("b", "c"): 1, ("c", "c"): 1, ("b", "b"): 1, ("b", none): 1}
    assert counts == want | {(none, "d"): 1}
    assert sum(row["count"] for row in evaluation.confused_most(counts)) == 3


@pytest.mark.parametrize("words", [1, 200_000])
def test_words_are_drawn_however_many(speech: ModuleType, tmp_path: Path, words: int) -> None:
    """One word that is always right, or so many that a whole matrix would be 320 GB."""
    counts = Counter((f"w{number}", f"w{(number + 1) % words}") for number in range(words))
    speech.evaluation.draw_words(counts, tmp_path / "confusion.png")
    height, width, _ = imread(tmp_path / "confusion.png").shape
    assert 300 < height < 3000
    assert 300 < width < 4000


def test_its_files_are_those_that_later_steps_read(speech_run: Path) -> None:
    """The folder holds the files of marship.fit.recipe's list, and what the handler must know."""
    assert {path.name for path in speech_run.iterdir()} == {
        *("settings.json", "checkpoint.pt", "metrics.json", "curve.png", "recipe.json"),
        *("examples.npz", "calibration.npz", "heldout.npz", "speech.json", "confusion.png"),
        *("model.onnx", "contract.json", "golden.npz", "parity.json"),
    }
    assert about(speech_run) == {
        "kind": "ctc",
        "sample_rate": RATE,
        "longest_s": 4.0,
        "alphabet": [" ", *"abcde"],
        "frame_s": 0.02,
        "words": sorted(WORDS),
    }
    heldout = np.load(speech_run / "heldout.npz")
    assert heldout["audio"].dtype == np.float32
    assert len(heldout["audio"]) == len(heldout["target/symbols"]) == 40


def test_the_contract_lets_requests_of_any_length_share_a_batch(speech_run: Path) -> None:
    """One input, padded with zeros along its samples, whose padding is cut by the reader."""
    contract = Contract.from_json((speech_run / "contract.json").read_bytes())
    assert [str(spec.name) for spec in contract.inputs] == ["audio"]
    assert [spec.shape for spec in contract.outputs] == [("batch", "frames", 7), ("batch",)]
    assert contract.bounds["samples"] == (1, 4 * RATE)
    assert contract.batch_axis == "batch"
    assert paddable_axes(contract) == {"samples"}
    parity = json.loads((speech_run / "parity.json").read_text())
    assert parity["rows_padded_and_not"]["agrees"] is True


def test_its_run_folder_gives_its_figures_again(speech: ModuleType, speech_run: Path) -> None:
    """Built, loaded and judged from the folder alone, the model has the greedy rate stated."""
    heldout = np.load(speech_run / "heldout.npz")
    with torch.no_grad():
        answers = trained(speech, speech_run)(torch.from_numpy(heldout["audio"]))
    recipe = Recipe.load(speech_run)
    assert recipe.judge is not None
    outputs = {name: answer.numpy() for name, answer in answers.items()}
    got = resolve(str(REPOSITORY / recipe.judge))(outputs, {"symbols": heldout["target/symbols"]})
    want = metrics_of(speech_run)["test"]["ways"]["greedy"]
    assert got == pytest.approx({name: want[name] for name in got}, abs=1e-9)


def test_the_graph_hears_what_was_said(speech_run: Path) -> None:
    """From the run folder's files alone: ONNX Runtime's answers, read, are the texts."""
    session = onnxruntime.InferenceSession(speech_run / "model.onnx")
    reader, settings = CtcReader(about(speech_run), speech_run), about(speech_run)
    heldout = np.load(speech_run / "heldout.npz")
    right = 0
    for audio, symbols in zip(heldout["audio"], heldout["target/symbols"], strict=True):
        log_probs, frames = session.run(["log_probs", "frames"], {"audio": audio[None]})
        segments = reader.read({"log_probs": log_probs, "frames": frames}, len(audio) / RATE)
        said = "".join(settings["alphabet"][symbol - 1] for symbol in symbols if symbol)
        right += " ".join(segment.text for segment in segments) == said
    assert right >= 34


@torch.no_grad()
def test_rows_predict_alone_as_together(speech: ModuleType, speech_run: Path) -> None:
    """Zeros behind a recording change nothing, however many, also for silence and one sample."""
    model = trained(speech, speech_run)
    audio = torch.from_numpy(np.load(speech_run / "heldout.npz")["audio"][:4])
    audio[2], audio[3] = 0, 0
    audio[3, 0] = 0.5
    together = model(audio)
    used = [int((row != 0).nonzero().max()) + 1 for row in (*audio[:2], audio[3])]
    for row, size in ((0, used[0]), (1, used[1]), (2, 1), (3, used[2])):
        alone = model(audio[row : row + 1, :size])
        count = int(alone["frames"][0])
        assert count == together["frames"][row]
        got, want = together["log_probs"][row, :count], alone["log_probs"][0, :count]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_loudness_changes_little(speech: ModuleType, speech_run: Path) -> None:
    """The same recording at a tenth of its amplitude has nearly the same probabilities."""
    model = trained(speech, speech_run)
    audio = torch.from_numpy(np.load(speech_run / "heldout.npz")["audio"][:8])
    loud, faint = (model(audio * factor)["log_probs"].exp() for factor in (1.0, 0.1))
    assert (loud - faint).abs().max() < 0.02


@pytest.mark.parametrize(("softer", "height"), [(1.0, 1.0), (0.01, 1.0), (1e-3, 1.0), (1e-5, 0.42)])
def test_a_soft_word_is_as_high_as_a_loud_one(
    speech: ModuleType, softer: float, height: float
) -> None:
    """Down to a thousandth of the power; what is fainter stays below, and silence at the bottom."""
    recognizer = sys.modules[speech.Recognizer.__module__]
    power = torch.zeros(1, 16, 400)
    power[0, 3, 50:90], power[0, 5, 300:340] = 2.0, 2.0 * softer
    scaled = recognizer.scaled(power, torch.tensor([400]))
    assert scaled[0, :, :200].max() == pytest.approx(1.0)
    assert scaled[0, :, 200:].max() == pytest.approx(height, abs=0.01)
    assert scaled[0, :, 140:250].unique().tolist() == [-1.0]


def test_the_judge_counts_words_and_characters(speech: ModuleType) -> None:
    """One wrong letter of `a a` (three characters, two words) is half the words, a third of all."""
    symbols = np.array([[2, 1, 2, 0], [3, 0, 0, 0]])
    heard = np.array([[2, 1, 3, 0, 0], [3, 3, 0, 0, 2]])
    log_probs = np.log(np.eye(4, dtype=np.float32)[heard] + 1e-6)
    outputs = {"log_probs": log_probs, "frames": np.array([3, 4])}
    got = speech.judge(outputs, {"symbols": symbols})
    assert got == pytest.approx({"word_error_rate": 1 / 3, "character_error_rate": 1 / 4})


def test_least_time_counts_blanks_in_doubled_letters(speech: ModuleType) -> None:
    """`bee` takes four frames of 20 ms, `bad` three."""
    assert speech.min_duration_s("bad") == pytest.approx(0.06)
    assert speech.min_duration_s("bee") == pytest.approx(0.08)


def test_a_whisper_is_fine_tuned(speech: ModuleType, tuned_run: Path, whisper_dir: Path) -> None:
    """Its shape is the settings', and after few steps its weights are nearly those it had."""
    settings = json.loads((tuned_run / "settings.json").read_text())
    assert {name: settings[name] for name in ("bands", "width", "blocks")} == {
        "bands": 80,
        "width": 128,
        "blocks": 2,
    }
    learned = trained(speech, tuned_run).network.state_dict()
    for name, before in speech.whisper_encoder.pretrained(str(whisper_dir)).items():
        assert (learned[name] - before).abs().max() < 0.02, name
        is_frozen = name.startswith(("conv", "layers.0."))  # one layer of two, as left out
        assert torch.equal(learned[name], before) == is_frozen, name
    assert metrics_of(tuned_run)["test"]["words"] > 40


def test_other_weights_make_another_run(
    speech: ModuleType, tuned_run: Path, whisper_dir: Path, words: Path
) -> None:
    """The run is not repeated with the same weights; its digest is that of data and weights."""
    flags = ["--run-dir", str(tuned_run), "--data-dir", str(words), "--epochs", "2", *QUICK]
    done = run_recipe("speech", *flags, "--backbone", str(whisper_dir), "--longest-s", "30")
    assert "holds this run already" in done.stdout
    of_data = speech.load(words, 16_000, 30.0, speech.min_duration_s).digest
    assert metrics_of(tuned_run)["data_digest"] != of_data
    weights = speech.whisper_encoder.pretrained(str(whisper_dir))
    before = speech.whisper_encoder.digest_of(weights)
    weights["layers.1.fc1.bias"][0] += 1e-6
    assert speech.whisper_encoder.digest_of(weights) != before


def test_a_fine_tuned_whisper_is_proven_and_batched(tuned_run: Path) -> None:
    """ONNX Runtime agrees, and neither rows nor padding change an answer."""
    contract = Contract.from_json((tuned_run / "contract.json").read_bytes())
    assert contract.bounds["samples"] == (1, 30 * RATE)
    assert contract.batch_axis == "batch"
    assert paddable_axes(contract) == {"samples"}
    parity = json.loads((tuned_run / "parity.json").read_text())
    assert parity["rows_padded_and_not"]["agrees"] is True
    assert {case["sizes"]["samples"] for case in parity["cases"]} >= {1, 30 * RATE}


def test_optimize_and_package_take_it(speech_run: Path, tmp_path: Path) -> None:
    """Variants are judged by the word error rate; the archive holds the reader and its file."""
    run_marship("optimize", speech_run, "--measure-s", "0.2", "--search-s", "3")
    report = json.loads((speech_run / "optimize.json").read_text())
    chosen = next(v for v in report["variants"] if v["name"] == report["chosen"])
    assert chosen["metric_drop"] <= 0.005
    run_marship("package", speech_run, "--model-store", tmp_path)
    with zipfile.ZipFile(tmp_path / "speech.mar") as archive:
        names = set(archive.namelist())
    assert {"speech.json", "marship/serving/speech/ctc.py", "speech_handler.py"} <= names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bands": 18, "backbone": "none"}, "bands must be a multiple of 4, got 18"),
        ({"words": "few"}, "words must be known or any, got 'few'"),
        ({"longest_s": 40}, "longest_s must be at most 30 with .*, got 40. Use --backbone none"),
        ({"width": 100}, "width must be 128, as in .*, got 100. Leave out --width, or use"),
        ({"bands": 40}, "bands must be 80, as in .*, got 40"),
        ({"blocks": 6}, "blocks must be 2, as in .*, got 6"),
        ({"frozen": 3}, "frozen must be at most 2, the layers of .*, got 3"),
        ({"frozen": 1, "backbone": "none"}, "frozen must be left out without a backbone, got 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    speech: ModuleType, words: Path, whisper_dir: Path, given: dict[str, Any], message: str
) -> None:
    """Before any recording is read, in one line."""
    with pytest.raises(UsageError, match=message) as caught:
        speech.with_weights(
            speech.validated(
                speech.Settings(**{"data_dir": words, "backbone": str(whisper_dir), **given})
            )
        )
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_whisper_is_refused(words: Path) -> None:
    """The command prints one line, and no traceback."""
    done = run_recipe("speech", "--data-dir", str(words), "--backbone", str(words))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "backbone must be whisper-tiny.en, none, or a Whisper" in line


def test_another_number_of_symbols_is_refused(speech: ModuleType, words: Path) -> None:
    """A checkpoint's settings do not fit data with other characters."""
    folder = speech.load(words, RATE, 4.0, speech.min_duration_s)
    assert speech.with_symbols(speech.Settings(), folder).symbols == 7
    with pytest.raises(DataError, match="must hold 8 characters, got 6"):
        speech.with_symbols(speech.Settings(data_dir=words, symbols=9), folder)
