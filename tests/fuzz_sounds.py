"""Damage recordings of every format and decode them: only errors of a request may come out.

    python tests/fuzz_sounds.py --count 100000 --seed 1

Each file is decoded within a limit of time and of memory. The first that breaks a rule ends the
run, and is there to look at; so is the last one where a decoder crashed.
"""

from random import Random

import numpy as np

import recordings
from damage import Decoder, main
from marship.errors import RequestError
from marship.serving import sounds
from recordings import recording

LIMIT_S = 2.0  # of processor time; the longest recording allowed takes a tenth of this
LONGEST_S = 20.0
RATES = (8_000, 16_000)
MENDED_SHARE = 0.7


def seeds() -> list[bytes]:
    """Small real files, of every format and most of their kinds."""
    files = [recording(kind, 0.1, 16_000, 1) for kind in recordings.KINDS]
    compressed = ("flac", "vorbis", "opus", "mp3")
    files += [recording(kind, 0.12, 48_000, 2) for kind in compressed]
    files += [recording(kind, 0.2, 8_000, 1) for kind in compressed]
    files.append(recording("flac", 0.05, 96_000, 6))
    files.append(recording("vorbis", 0.1) + recording("opus", 0.1))
    mp3 = recording("mp3", 0.3, 32_000, 2)
    files += [recordings.without_xing(mp3), recordings.ID3V2 + mp3 + recordings.APE]
    files.append(recordings.flac_claiming(recording("flac", 0.2), 0))
    pcm = recordings.voice(0.05).astype(np.float16).tobytes()
    return [*files, recordings.wav(pcm, size=0xFFFFFFFF), recordings.wav(pcm, size=0)]


def mend(data: bytes, random: Random) -> bytes:
    """Give an OGG's pages their right checksums, so that damage reaches what lies behind them."""
    if not data.startswith(b"OggS") or random.random() >= MENDED_SHARE:
        return data
    try:
        return b"".join(recordings.mended(page) for page in recordings.ogg_pages(data))
    except IndexError:  # no pages any more
        return data


def outcome(data: bytes, random: Random) -> str:
    """The error's code or the format; anything else that is raised goes on."""
    rate = random.choice(RATES)
    try:
        sound = sounds.decode(data, rate, LONGEST_S)
    except RequestError as error:
        return error.code
    wanted = sound.seconds * rate
    if not (len(sound.samples) and abs(len(sound.samples) - wanted) <= 1 + sound.seconds):
        raise AssertionError(f"samples must be about {wanted:.0f}, got {len(sound.samples)}")
    if not np.isfinite(sound.samples).all():
        raise AssertionError("samples must be finite")
    return sound.format


if __name__ == "__main__":
    main(Decoder("sound", seeds(), mend, outcome, LIMIT_S), __doc__)
