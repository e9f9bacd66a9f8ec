"""Whisper's encoder as part of a recognizer: transformers' own, for recordings of any length."""

import copy
import re
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from marship.errors import DataError
from marship.fit.recipe import resolve
from recipes import REPOSITORY
from whisper_folder import AS_PUBLISHED, RATE, sound, write_whisper

BANDS, WIDTH, BLOCKS, SYMBOLS = 80, 128, 2, 5
SHAPE = {"bands": BANDS, "width": WIDTH, "blocks": BLOCKS}


@pytest.fixture(scope="module")
def encoder() -> ModuleType:
    """training/whisper_encoder.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/whisper_encoder.py:scaled")).__module__]


@pytest.fixture(scope="module")
def recognizer() -> ModuleType:
    """training/recognizer.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/recognizer.py:build")).__module__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Whisper with random weights."""
    return write_whisper(tmp_path_factory.mktemp("whisper") / "model", **AS_PUBLISHED)


@pytest.fixture(scope="module")
def network(encoder: ModuleType, folder: Path) -> Any:
    """Its encoder, and a random last layer."""
    torch.manual_seed(1)
    found = encoder.WhisperNetwork(BANDS, WIDTH, BLOCKS, SYMBOLS, 0.1).eval()
    found.load_state_dict(encoder.pretrained(str(folder)), strict=False)
    return found


def model_of(recognizer: ModuleType, network: Any, folder: Path, rate: int) -> Any:
    """The whole model for samples at a rate."""
    symbols = {"symbols": SYMBOLS, "dropout": 0.1}
    model = recognizer.build(backbone=str(folder), sample_rate=rate, **SHAPE, **symbols).eval()
    model.network.load_state_dict(network.state_dict())
    return model


@torch.no_grad()
def test_it_is_the_encoder_of_transformers(encoder: ModuleType, network: Any, folder: Path) -> None:
    """With the silence around it a full window of 30 s: equal within 0.00001."""
    before, after = encoder.BEFORE, encoder.AFTER
    mel = torch.randn(2, BANDS, 3000 - before - after, generator=torch.Generator().manual_seed(1))
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval().model.encoder
    found: list[torch.Tensor] = []
    hook = network.layer_norm.register_forward_hook(lambda *parts: found.append(parts[2]))
    network(mel, torch.tensor([mel.shape[2]] * 2))
    hook.remove()
    window = functional.pad(mel, (before, after), value=encoder.LOUDEST - encoder.RANGE / 4)
    wanted = theirs(window).last_hidden_state[:, before // 2 : -(after // 2)]
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


def test_its_positions_are_whispers_whatever_the_length(network: Any, folder: Path) -> None:
    """Those of the model, and in training, where recordings are joined, more of them."""
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).model.encoder
    wanted = theirs.embed_positions.weight
    torch.testing.assert_close(network.places(1500), wanted, rtol=0, atol=1e-6)
    longer = copy.deepcopy(network).train()
    torch.testing.assert_close(longer.places(4000)[:1500], wanted, rtol=0, atol=1e-6)
    log_probs, frames = longer(torch.zeros(1, BANDS, 4000), torch.tensor([4000]))
    assert log_probs.shape[1] == frames[0] == 2000


def test_every_weight_is_the_models(encoder: ModuleType, folder: Path, network: Any) -> None:
    """Only the layer that spells is new."""
    weights = encoder.pretrained(str(folder))
    assert encoder.shape_of(weights) == SHAPE
    fresh = encoder.WhisperNetwork(BANDS, WIDTH, BLOCKS, SYMBOLS, 0.1)
    missing, unexpected = fresh.load_state_dict(weights, strict=False)
    assert set(missing) == {"spell.weight", "spell.bias"}
    assert unexpected == []
    state = network.state_dict()
    assert all(torch.equal(weights[name], state[name]) for name in weights)


@torch.no_grad()
def test_padding_changes_nothing(network: Any) -> None:
    """A row's frames are the same alone as beside longer ones, whatever the padding holds."""
    mel = torch.randn(4, BANDS, 41, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([41, 17, 18, 1])
    together, frames = network(mel, lengths)
    assert frames.tolist() == [21, 9, 9, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, count = network(mel[row : row + 1, :, :length], lengths[row : row + 1])
        assert count.tolist() == [frames[row]]
        torch.testing.assert_close(together[row, : count[0]], alone[0], rtol=1e-4, atol=1e-4)
    padding = together[1, frames[1] :]
    torch.testing.assert_close(padding, padding[:1].expand_as(padding))


@torch.no_grad()
@pytest.mark.parametrize("samples", [7 * 160 - 1, 7 * 160, 40 * 160 + 81, 16_159])
@pytest.mark.parametrize("ending", [1, 4, 8, 200])
def test_a_row_that_ends_loudly_is_the_same_alone_and_in_a_batch(
    recognizer: ModuleType, network: Any, folder: Path, samples: int, ending: int
) -> None:
    """A click at the end is in the window of the first padded frame, too, and counts in neither."""
    model = model_of(recognizer, network, folder, RATE)
    audio = 0.01 * torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    audio[0, -ending:] = 0.9 * torch.tensor([1.0, -1.0]).repeat(100)[:ending]
    longer = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(2))
    alone = model(audio)
    batch = torch.cat([functional.pad(audio, (0, 20_000 - samples)), longer])
    together, count = model(batch), int(alone["frames"][0])
    assert int(together["frames"][0]) == count
    torch.testing.assert_close(
        together["log_probs"][0, :count], alone["log_probs"][0], rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
def test_what_is_said_later_is_seen(network: Any) -> None:
    """Attention looks both ways: the last frames change the first output."""
    mel = torch.randn(1, BANDS, 400, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([400])
    other = mel.clone()
    other[:, :, 300:] = 0
    assert (network(mel, frames)[0] - network(other, frames)[0])[:, 0].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("factor", [4.0, 0.3, 1 / 64])
def test_loudness_changes_nothing(
    recognizer: ModuleType, network: Any, folder: Path, factor: float
) -> None:
    """Probabilities are those of the recording at another amplitude, down to -36 dB."""
    model = model_of(recognizer, network, folder, RATE)
    audio = torch.from_numpy(sound(2.0, 1))[None]
    want, got = (model(audio * scale)["log_probs"] for scale in (1.0, factor))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_the_spectrogram_is_whispers_but_for_loudness(
    encoder: ModuleType, recognizer: ModuleType, folder: Path
) -> None:
    """It differs from that of transformers by a constant, except at the ends, which it pads."""
    audio = sound(30.0, 1)
    wanted = WhisperFeatureExtractor()(audio, sampling_rate=RATE, return_tensors="pt")
    mel = recognizer.make_mel(str(folder), RATE, BANDS)
    got = encoder.scaled(mel(torch.from_numpy(audio)[None]), torch.tensor([3001]))
    difference = (got[:, :, :-1] - wanted.input_features)[:, :, 2:-2]
    assert difference.max() - difference.min() < 1e-3


def test_samples_at_half_the_rate_give_nearly_the_same_spectrogram(
    encoder: ModuleType, recognizer: ModuleType, folder: Path
) -> None:
    """Telephone speech looks as when it is resampled to Whisper's rate; above 4 kHz is nothing."""
    half = soxr.resample(sound(2.0, 1), RATE, RATE // 2)
    whole = soxr.resample(half, RATE // 2, RATE, "VHQ")
    low, high = (
        encoder.scaled(mel(torch.from_numpy(audio)[None]), torch.tensor([201]))[0, :, 5:-5]
        for mel, audio in (
            (recognizer.make_mel(str(folder), RATE // 2, BANDS), half),
            (recognizer.make_mel(str(folder), RATE, BANDS), whole),
        )
    )
    filters = recognizer.make_mel(str(folder), RATE // 2, BANDS).filters  # bins of 40 Hz
    silent = filters.sum(1) == 0
    heard = ~silent & (filters[:, 3600 // 40 :].sum(1) == 0)
    assert heard.sum() > 50
    assert silent.sum() > 10
    assert (low - high)[heard].abs().max() < 0.01
    assert low[silent].unique().tolist() == [encoder.LOUDEST - encoder.RANGE / 4]
    assert (low - high)[silent].abs().max() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("rate", [4049, 8000, 11025, RATE])
def test_the_longest_recording_is_read(
    recognizer: ModuleType, network: Any, folder: Path, rate: int
) -> None:
    """30 s are 1,501 frames of output, or more where 10 ms are no whole number of samples."""
    model = model_of(recognizer, network, folder, rate)
    outputs = model(0.1 * torch.randn(1, 30 * rate, generator=torch.Generator().manual_seed(1)))
    count = int(outputs["frames"][0])
    assert outputs["log_probs"].shape == (1, count, SYMBOLS)
    assert count == {4049: 1519, 11025: 1504}.get(rate, 1501)
    assert outputs["log_probs"].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("value", [0.5, 0.0])
def test_one_sample_is_read(
    recognizer: ModuleType, network: Any, folder: Path, value: float
) -> None:
    """Also a silent one: its probabilities are finite, and sum to one."""
    outputs = model_of(recognizer, network, folder, RATE)(torch.full((1, 1), value))
    assert outputs["frames"].tolist() == [1]
    assert outputs["log_probs"].exp().sum() == pytest.approx(1.0, abs=1e-5)


def test_a_folder_needs_no_network(
    encoder: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for an address fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert encoder.pretrained(str(folder))


def other_model(folder: Path) -> Path:
    """A folder of transformers that holds a model of another kind."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=8, intermediate_size=16, **shape)).save_pretrained(folder)
    return folder


def without_weights(folder: Path) -> Path:
    """A Whisper's configuration alone."""
    (write_whisper(folder) / "model.safetensors").unlink()
    return folder


def damaged(folder: Path) -> Path:
    """A Whisper whose file of weights was cut."""
    file = write_whisper(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return folder


def incomplete(folder: Path) -> Path:
    """A Whisper without one of the encoder's weights."""
    file = write_whisper(folder, **AS_PUBLISHED) / "model.safetensors"
    weights = load_file(file)
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, file, {"format": "pt"})
    return folder


def empty(folder: Path) -> Path:
    """Nothing."""
    folder.mkdir()
    return folder


REFUSED = [
    (other_model, "a model of type bert"),
    (without_weights, "OSError: Error no file named model.safetensors"),
    (damaged, "SafetensorError: "),
    (incomplete, "no weights model.encoder.layers.1.fc1.weight"),
    (empty, ""),
    (lambda path: path, ""),
    (write_whisper, "16 channels in 2 attention heads"),
]


@pytest.mark.parametrize(("made", "reason"), REFUSED)
def test_what_is_no_such_whisper_is_refused(
    encoder: ModuleType, tmp_path: Path, made: Any, reason: str
) -> None:
    """One line says so, and what may be given."""
    folder = made(tmp_path / "model")
    with pytest.raises(DataError) as caught:
        encoder.pretrained(str(folder))
    wanted = rf"backbone must be whisper-tiny\.en, none, .*; got {folder}: {reason}.{{,400}}"
    assert re.fullmatch(wanted, str(caught.value))  # a dot is not the end of a line
