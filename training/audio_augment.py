"""Data augmentation of recordings: batches of mel spectrograms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from audiofolder import Recordings
from logmel import MelPower, hz_to_mel, mel_to_hz
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from marship.contract import Array

LEVEL_DB = -20
"""Mean peak level of recordings after normalization, relative to full scale."""
GROUP = 8
"""Rows that are padded to the same length."""
PAUSE_S = 0.4
"""Longest pause between joined recordings."""
ECHO_S = 0.3
"""Length of the simulated reverberation."""
DEADEST_S, LIVELIEST_S = 0.1, 0.6
FARTHEST_DB = 20
"""Power of the reverberation relative to direct sound: 0 to -20 dB."""
SLOPES = 4
"""Cosines over the bands that make up a random filter."""
LOUDEST_NOISE, FAINTEST_NOISE = 0.02, 1e-6
"""Power of added noise, as a share of the row's mean: 17 and 60 dB below it."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Settings of data augmentation.

    Attributes:
        speed: Largest change of a recording's speed, as a share; the pitch changes with it.
        volume_db: Largest change of a recording's loudness, up or down.
        join: Share of recordings that are appended to another one.
        warp: Largest change of all frequencies, as a share (vocal tract length).
        colour_db: Strength of a smooth random filter over the bands.
        echo: Share of rows with reverberation.
        noise: Share of rows that noise is added to.
        bands: Largest share of the bands that one of two frequency masks covers.
        gap_s: Longest time mask; one for about each two seconds.
    """

    speed: float
    volume_db: float
    join: float
    warp: float
    colour_db: float
    echo: float
    noise: float
    bands: float
    gap_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Samples, float32, and their transcription."""

    audio: Array
    text: str


class Augmented(Dataset[list[dict[str, torch.Tensor]]]):
    """Recordings with the given indices, augmented each time that they are drawn.

    A batch is divided into groups of recordings of similar length, to reduce padding. Joining the
    recordings of a group to one long row would avoid padding too, but with long rows CTC takes
    three times as long to learn the alignment.

    Args:
        recordings: All recordings.
        places: Indices of those to train on.
        alphabet: Character n has symbol n + 1.
        rate: Samples a second.
        mel: The model's first layer.
        changes: Settings of augmentation.
    """

    def __init__(  # noqa: PLR0913  they are what a batch is made from
        self,
        recordings: Recordings,
        places: Array,
        *,
        alphabet: Sequence[str],
        rate: int,
        mel: MelPower,
        changes: Augmentation,
    ) -> None:
        self.recordings, self.places, self.changes = recordings, places, changes
        self.symbols = {character: place for place, character in enumerate(alphabet, 1)}
        self.rate, self.mel = rate, mel

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """A batch, in groups of up to 8 rows."""
        spoken = [
            Spoken(vary(self.recordings.audio(place), self.changes), self.recordings.texts[place])
            for place in self.places[indices]
        ]
        spoken = joined(spoken, self.changes.join, PAUSE_S * self.rate)
        spoken.sort(key=lambda one: len(one.audio))
        return [self.group(spoken[n : n + GROUP]) for n in range(0, len(spoken), GROUP)]

    @torch.no_grad()
    def group(self, spoken: Sequence[Spoken]) -> dict[str, torch.Tensor]:
        """One group as a padded batch.

        `power`, float32 (rows, bands, frames); `frames`, int64 (rows,); `symbols`, int64 (rows,
        characters), padded with 0; `characters`, int64 (rows,).
        """
        symbols = [torch.tensor([self.symbols[c] for c in one.text]) for one in spoken]
        frames = torch.tensor([len(one.audio) // self.mel.hop + 1 for one in spoken])
        audio = pad_sequence([torch.from_numpy(one.audio) for one in spoken], batch_first=True)
        return {
            "power": self.changed(self.mel(audio), frames),
            "frames": frames,
            "symbols": pad_sequence(symbols, batch_first=True),
            "characters": torch.tensor([len(one.text) for one in spoken]),
        }

    def changed(self, power: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Augment a spectrogram: vocal tract, filter, reverberation, noise, masks."""
        changes, bands = self.changes, power.shape[1]
        power = warped(power, self.mel.top_hz, changes.warp)
        power = power * colour(len(power), bands, changes.colour_db)
        power = reverberant(power, changes.echo, self.mel.hop / self.rate)
        power = noisy(power, frames, changes.noise, changes.colour_db)
        width = changes.gap_s * self.rate / self.mel.hop
        return masked(power, bands=changes.bands * bands, gap_frames=width)


def vary(audio: Array, changes: Augmentation) -> Array:
    """Change a recording's speed, and normalize its loudness, since recordings are joined."""
    speed = math.exp(torch.empty(()).uniform_(-1, 1) * math.log1p(changes.speed))
    volume_db = LEVEL_DB + float(torch.empty(()).uniform_(-1, 1)) * changes.volume_db
    changed: Array = soxr.resample(audio, speed, 1.0, quality="LQ")
    return changed * np.float32(10 ** (volume_db / 20) / np.abs(changed).max())


def joined(spoken: Sequence[Spoken], share: float, longest_pause: float) -> list[Spoken]:
    """Append some recordings to the one before, after a random pause."""
    rows: list[Spoken] = []
    joins = torch.rand(len(spoken)) < share
    for one, join in zip(spoken, joins.tolist(), strict=True):
        if join and rows:
            pause = np.zeros(int(torch.rand(()) * longest_pause), np.float32)
            before = rows.pop()
            audio = np.concatenate([before.audio, pause, one.audio])
            rows.append(Spoken(audio, f"{before.text} {one.text}"))
        else:
            rows.append(one)
    return rows


def warped(power: torch.Tensor, top_hz: float, most: float) -> torch.Tensor:
    """Multiply all frequencies of each row by a random factor.

    Vocal tract length perturbation, Jaitly and Hinton 2013.
    """
    rows, bands, _ = power.shape
    factors = torch.empty(rows, 1).uniform_(-1, 1).mul_(math.log1p(most)).exp_()
    step = float(hz_to_mel(np.array(top_hz))) / (bands + 1)
    centres_hz = mel_to_hz(step * np.arange(1, bands + 1))
    sources = hz_to_mel((torch.from_numpy(centres_hz) * factors).numpy()) / step - 1
    places = torch.from_numpy(sources).clamp(0, bands - 1).float()[:, :, None]
    near = (1 - (places - torch.arange(bands)).abs()).clamp(min=0)  # linear between two bands
    return near @ power


def colour(rows: int, bands: int, loudest_db: float) -> torch.Tensor:
    """A smooth random filter for each row, as factors of power: float32 (rows, bands, 1)."""
    waves = torch.arange(1, SLOPES + 1)[:, None] * torch.linspace(0, math.pi, bands)
    weights = torch.randn(rows, SLOPES) / torch.arange(1, SLOPES + 1)
    return 10 ** (weights @ waves.cos() * loudest_db / 10)[:, :, None]


def reverberant(power: torch.Tensor, share: float, hop_s: float) -> torch.Tensor:
    """Add reverberation of random length and level to some rows.

    The power of each frame decays exponentially, by 60 dB in the reverberation time.
    """
    rows = len(power)
    delays_s = torch.arange(1, round(ECHO_S / hop_s)) * hop_s
    times_s = torch.empty(rows, 1).uniform_(DEADEST_S, LIVELIEST_S)
    late = 10 ** (-6 * delays_s / times_s)
    level = 10 ** (-torch.rand(rows, 1) * FARTHEST_DB / 10) * (torch.rand(rows, 1) < share)
    late *= level / late.sum(1, keepdim=True)
    kernel = torch.cat([torch.ones(rows, 1), late], 1).flip(1)[:, None]
    padded = functional.pad(power, (kernel.shape[2] - 1, 0))
    return functional.conv1d(padded.transpose(0, 1), kernel, groups=rows).transpose(0, 1)


def noisy(
    power: torch.Tensor, frames: torch.Tensor, share: float, colour_db: float
) -> torch.Tensor:
    """Add stationary noise of random level and colour to some rows.

    Powers of independent sounds add up. The power of noise in a band is drawn from an exponential
    distribution.
    """
    rows, bands, _ = power.shape
    mean = power.sum((1, 2)) / (frames * bands)
    low, high = math.log(FAINTEST_NOISE), math.log(LOUDEST_NOISE)
    level = torch.empty(rows).uniform_(low, high).exp() * mean * (torch.rand(rows) < share)
    spread = torch.empty_like(power).exponential_()
    return power + spread * level[:, None, None] * colour(rows, bands, 2 * colour_db)


def masked(power: torch.Tensor, *, bands: float, gap_frames: float) -> torch.Tensor:
    """Set some bands and some frames of each row to zero.

    SpecAugment, Park et al. 2019, section 2, without time warping.
    """
    rows, height, width = power.shape
    kept = torch.ones_like(power)
    for _ in range(2):
        kept *= ~stripes(rows, height, bands)[:, :, None]
    for _ in range(max(1, width // 200)):
        kept *= ~stripes(rows, width, gap_frames)[:, None, :]
    return power * kept


def stripes(rows: int, size: int, widest: float) -> torch.Tensor:
    """A mask of a random interval for each row: bool (rows, size)."""
    width = torch.rand(rows, 1) * widest
    start = torch.rand(rows, 1) * (size - width)
    places = torch.arange(size)
    return (places >= start) & (places < start + width)
