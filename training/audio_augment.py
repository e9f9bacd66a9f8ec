"""Training recordings, changed at random: a batch at a time, as mel spectrograms."""

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
"""Where the peak of a recording of middle loudness lies, below the largest sample there is."""
GROUP = 8
"""So many rows are filled up to one length."""
PAUSE_S = 0.4
"""Between joined recordings at most."""
ECHO_S = 0.3
"""What comes later than this is left out."""
DEADEST_S, LIVELIEST_S = 0.1, 0.6
FARTHEST_DB = 20
"""The echo has as much power as what comes straight, down to 20 dB less."""
SLOPES = 4
"""Cosines over the bands that a random colour is made of."""
LOUDEST_NOISE, FAINTEST_NOISE = 0.02, 1e-6
"""Power of added noise, as a share of the row's mean: 17 and 60 dB below it."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may be changed.

    Attributes:
        speed: Largest change of a recording's speed, as a share; its pitch goes with it.
        volume_db: Largest change of a recording's loudness beside others', up or down.
        join: Share of recordings that are said behind another one.
        warp: Largest change of all frequencies, as a share, as another throat would make it.
        colour_db: About how much a smooth random filter raises or lowers bands.
        echo: Share of rows that are heard in a room.
        noise: Share of rows that noise is added to.
        bands: Largest share of the bands that is silenced at a place, at two places.
        gap_s: Longest silenced time, one for each two seconds or so.
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
    """Samples, float32, and what is said in them."""

    audio: Array
    text: str


class Augmented(Dataset[list[dict[str, torch.Tensor]]]):
    """Recordings at some places, changed anew each time that they are drawn.

    A batch comes in groups of recordings of about one length, so that little is padded. Joined
    to one long row each, nothing would be padded either; but from long rows CTC takes three
    times as long to find out which sound is which letter.

    Args:
        recordings: Where they come from.
        places: Which of them are learned from.
        alphabet: Character n has symbol n + 1.
        rate: Samples a second.
        mel: The model's first layer.
        changes: How they are changed.
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
        """Rows that are heard together.

        `power`, float32 (rows, bands, frames); `frames`, int64 (rows,); `symbols`, int64 (rows,
        characters), filled up with 0; `characters`, int64 (rows,).
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
        """A spectrogram of other throats, rooms and microphones, with parts silenced."""
        changes, bands = self.changes, power.shape[1]
        power = warped(power, self.rate, changes.warp)
        power = power * colour(len(power), bands, changes.colour_db)
        power = echoing(power, changes.echo, self.mel.hop / self.rate)
        power = noisy(power, frames, changes.noise, changes.colour_db)
        width = changes.gap_s * self.rate / self.mel.hop
        return silenced(power, bands=changes.bands * bands, gap_frames=width)


def vary(audio: Array, changes: Augmentation) -> Array:
    """A recording at another speed, and about as loud as others: they are heard joined."""
    speed = math.exp(torch.empty(()).uniform_(-1, 1) * math.log1p(changes.speed))
    volume_db = LEVEL_DB + float(torch.empty(()).uniform_(-1, 1)) * changes.volume_db
    changed: Array = soxr.resample(audio, speed, 1.0, quality="LQ")
    return changed * np.float32(10 ** (volume_db / 20) / np.abs(changed).max())


def joined(spoken: Sequence[Spoken], share: float, longest_pause: float) -> list[Spoken]:
    """Some recordings with the next one behind them, after a random pause."""
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


def warped(power: torch.Tensor, rate: int, most: float) -> torch.Tensor:
    """All frequencies of each row multiplied by a number of its own.

    Vocal tract length perturbation, Jaitly and Hinton 2013.
    """
    rows, bands, _ = power.shape
    factors = torch.empty(rows, 1).uniform_(-1, 1).mul_(math.log1p(most)).exp_()
    step = float(hz_to_mel(np.array(rate / 2))) / (bands + 1)
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


def echoing(power: torch.Tensor, share: float, hop_s: float) -> torch.Tensor:
    """Some rows heard in a room of random size, at a random distance.

    Behind each frame its power dies away, by 60 dB in the room's reverberation time.
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
    """Steady noise of random loudness and colour, added to some of the rows.

    Powers of independent sounds add up. That of noise in a band is spread as the sum of a few
    squares.
    """
    rows, bands, _ = power.shape
    mean = power.sum((1, 2)) / (frames * bands)
    low, high = math.log(FAINTEST_NOISE), math.log(LOUDEST_NOISE)
    level = torch.empty(rows).uniform_(low, high).exp() * mean * (torch.rand(rows) < share)
    spread = torch.empty_like(power).exponential_()
    return power + spread * level[:, None, None] * colour(rows, bands, 2 * colour_db)


def silenced(power: torch.Tensor, *, bands: float, gap_frames: float) -> torch.Tensor:
    """Some bands and some moments of each row without power.

    SpecAugment, Park et al. 2019, section 2, without its warping of time.
    """
    rows, height, width = power.shape
    kept = torch.ones_like(power)
    for _ in range(2):
        kept *= ~stripes(rows, height, bands)[:, :, None]
    for _ in range(max(1, width // 200)):
        kept *= ~stripes(rows, width, gap_frames)[:, None, :]
    return power * kept


def stripes(rows: int, size: int, widest: float) -> torch.Tensor:
    """For each row a random stretch of `size` places: bool (rows, size)."""
    width = torch.rand(rows, 1) * widest
    start = torch.rand(rows, 1) * (size - width)
    places = torch.arange(size)
    return (places >= start) & (places < start + width)
