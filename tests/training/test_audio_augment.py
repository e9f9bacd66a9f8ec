"""Training recordings are changed within their bounds, and what is said in them stays."""

import itertools
import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from marship.fit.recipe import resolve
from recipes import REPOSITORY
from tone_words import RATE, write_tone_words

HOP = RATE // 100
NAMES = ("speed", "volume_db", "join", "warp", "colour_db", "echo", "noise", "bands", "gap_s")
STILL = dict.fromkeys(NAMES, 0.0)


@pytest.fixture(scope="module")
def augment() -> ModuleType:
    """training/audio_augment.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/audio_augment.py:vary")).__module__]


@pytest.fixture(scope="module")
def recordings(augment: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tone words, loaded."""
    module = sys.modules[augment.Recordings.__module__]
    folder = write_tone_words(tmp_path_factory.mktemp("words"), train=40, test=2)
    return module.load(folder, RATE, 10.0, lambda _text: 0.0).train


def dataset(
    augment: ModuleType, recordings: Any, top_hz: float = RATE / 2, **changes: float
) -> Any:
    """All recordings, changed in these ways only, in bands up to `top_hz`."""
    kind = sys.modules[augment.MelPower.__module__].MelPower
    mel = kind(RATE, RATE // 40, HOP, 40, top_hz=top_hz)
    return augment.Augmented(
        recordings,
        np.arange(len(recordings)),
        alphabet=" abcde",
        rate=RATE,
        mel=mel,
        changes=augment.Augmentation(**(STILL | changes)),
    )


def texts_of(batch: list[dict[str, torch.Tensor]]) -> list[str]:
    """What the rows of all groups say."""
    return [
        "".join(" abcde"[symbol - 1] for symbol in row[:count])
        for group in batch
        for row, count in zip(group["symbols"], group["characters"], strict=True)
    ]


def test_a_batch_says_what_its_recordings_say(augment: ModuleType, recordings: Any) -> None:
    """In groups of eight or less, every text is there once, and frames are counted rightly."""
    torch.manual_seed(1)
    batch = dataset(augment, recordings, speed=0.2, noise=1.0).__getitems__(list(range(20)))
    assert sorted(texts_of(batch)) == sorted(recordings.texts[:20])
    assert [len(group["frames"]) for group in batch] == [8, 8, 4]
    for group in batch:
        assert group["power"].shape == (len(group["frames"]), 40, int(group["frames"].max()))
    frames = torch.cat([group["frames"] for group in batch])
    assert (frames.diff() >= 0).all()


def test_a_joined_text_has_the_order_of_its_sounds(augment: ModuleType) -> None:
    """Five sounds of one pitch each, joined to one row: the pitches come as the letters do."""
    pitches_hz = np.array([400.0, 800.0, 1200.0, 1600.0, 2000.0])
    samples = [np.sin(2 * np.pi * hz / RATE * np.arange(1600)) for hz in pitches_hz]
    ends = 1600 * np.arange(1, 6)
    sounds = augment.Recordings(
        names=tuple("abcde"),
        texts=tuple("abcde"),
        speakers=("",) * 5,
        samples=(np.concatenate(samples) * 32000).astype(np.int16),
        spans=np.stack([ends - 1600, ends], 1),
    )
    (group,) = dataset(augment, sounds, join=1.0).__getitems__([3, 1, 4, 0, 2])
    (power,) = group["power"]
    loud = power[:, power.sum(0) > 0.1 * float(power.sum(0).max())]
    heard_hz = np.array(centre_hz(augment, loud.T[:, :, None]))
    letters = ["abcde"[int(np.abs(pitches_hz - hz).argmin())] for hz in heard_hz]
    assert [letter for letter, _ in itertools.groupby(letters)] == list("dbeac")
    assert texts_of([group]) == ["d b e a c"]


def test_some_are_joined(augment: ModuleType, recordings: Any) -> None:
    """About a third stands behind another one; all words are there, and in their order."""
    torch.manual_seed(1)
    batch = dataset(augment, recordings, join=0.3).__getitems__(list(range(40)))
    texts = texts_of(batch)
    assert 22 <= len(texts) <= 34
    assert sorted(" ".join(texts).split()) == sorted(" ".join(recordings.texts[:40]).split())


def test_without_changes_a_single_recording_is_its_spectrogram(
    augment: ModuleType, recordings: Any
) -> None:
    """Nothing asked for, nothing changed but the loudness, which is the same for all."""
    data = dataset(augment, recordings)
    (group,) = data.__getitems__([3])
    audio = recordings.audio(3)
    want = data.mel(torch.from_numpy(0.1 * audio / np.abs(audio).max())[None])
    torch.testing.assert_close(group["power"], want, rtol=1e-3, atol=1e-6)


def test_equal_seeds_change_alike(augment: ModuleType, recordings: Any) -> None:
    """All randomness comes from torch's generator, which a checkpoint keeps."""
    data = dataset(augment, recordings, speed=0.1, volume_db=6, warp=0.1, colour_db=3, noise=0.5)
    batches = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        batches.append(data.__getitems__([1, 2, 3])[0]["power"])
    torch.testing.assert_close(batches[0], batches[1], rtol=0, atol=0)
    assert batches[0].shape != batches[2].shape or not torch.equal(batches[0], batches[2])


def test_speed_and_volume_stay_within_their_bounds(augment: ModuleType) -> None:
    """Lengths change by up to a fifth; peaks are 20 dB below the largest, or up to 6 beside."""
    torch.manual_seed(1)
    sound = np.sin(np.arange(RATE) * 0.3).astype(np.float32)
    changes = augment.Augmentation(**(STILL | {"speed": 0.2, "volume_db": 6.0}))
    varied = [augment.vary(sound, changes) for _ in range(60)]
    lengths = [len(one) / len(sound) for one in varied]
    gains_db = [20 + 20 * math.log10(np.abs(one).max()) for one in varied]
    assert 1 / 1.21 < min(lengths) < 0.9
    assert 1.1 < max(lengths) < 1.21
    assert -6.1 < min(gains_db) < -4
    assert 4 < max(gains_db) < 6.1


def centre_hz(
    augment: ModuleType, power: torch.Tensor, top_hz: float = RATE / 2
) -> Sequence[float]:
    """The frequency of each row's loudest band."""
    logmel = sys.modules[augment.MelPower.__module__]
    top = logmel.hz_to_mel(np.array(top_hz))
    bands = power.shape[1]
    places = (power.sum(2) @ torch.arange(1.0, bands + 1)) / power.sum((1, 2)) / (bands + 1)
    found: list[float] = logmel.mel_to_hz(places.numpy() * top).tolist()
    return found


@pytest.mark.parametrize("top_hz", [RATE / 2, RATE])
def test_warping_multiplies_frequencies(
    augment: ModuleType, recordings: Any, top_hz: float
) -> None:
    """A tone of 1 kHz moves to between 1 kHz / 1.2 and 1.2 kHz, wherever the bands end.

    Its power hardly changes.
    """
    torch.manual_seed(1)
    data = dataset(augment, recordings, top_hz, warp=0.2)
    tone = torch.sin(torch.arange(RATE) * 2 * torch.pi * 1000 / RATE)
    power = data.mel(tone.expand(60, -1))
    found = centre_hz(augment, data.changed(power, torch.full((60,), power.shape[2])), top_hz)
    assert 780 < min(found) < 870
    assert 1150 < max(found) < 1260
    torch.testing.assert_close(augment.warped(power, top_hz, 0.0), power, rtol=1e-3, atol=1e-6)


def test_echoes_die_away_behind_a_sound(augment: ModuleType) -> None:
    """Nothing comes before its cause; the echo's power is up to the sound's, and falls."""
    torch.manual_seed(1)
    power = torch.zeros(100, 4, 80)
    power[:, :, 20] = 1.0
    result = augment.reverberant(power, 0.5, 0.01)
    assert (result[:, :, :20] == 0).all()
    torch.testing.assert_close(result[:, :, 20], power[:, :, 20])
    late = result[:, :, 21:]
    assert 0.3 < (late.sum((1, 2)) > 0).double().mean() < 0.7
    assert 0.5 < late.sum(2).max() <= 1.0001
    assert (late.diff(dim=2) <= 0).all()


def test_noise_has_the_loudness_stated(augment: ModuleType) -> None:
    """It adds 17 to 60 dB less power than the row has, and none to rows that are spared."""
    torch.manual_seed(1)
    power, frames = torch.ones(400, 40, 100), torch.full((400,), 100)
    added = augment.noisy(power, frames, 0.5, 0.0) - power
    share = added.mean((1, 2))
    assert 0.4 < (share > 0).double().mean() < 0.6
    assert share.max() < 0.03
    assert (added >= 0).all()


def test_masks_are_as_wide_as_allowed(augment: ModuleType) -> None:
    """Up to two stripes of bands and one of time have no power; the rest is as it was."""
    torch.manual_seed(1)
    power = torch.ones(200, 40, 150)
    kept = augment.masked(power, bands=8, gap_frames=10)
    gone = kept == 0
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert gone.all(2).sum(1).max() <= 2 * 9
    assert 5 < gone.all(1).sum(1).max() <= 11
