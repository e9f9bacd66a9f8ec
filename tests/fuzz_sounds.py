"""Damage recordings of every format and decode them: only errors of a request may come out.

    python tests/fuzz_sounds.py --count 100000 --seed 1

Each file is decoded within a limit of time and of memory. The first that breaks a rule ends the
run, and is there to look at; so is the last one where a decoder crashed.
"""

import argparse
import faulthandler
import os
import resource
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np

import recordings
from fuzz_pictures import MUTATIONS
from marship.errors import RequestError
from marship.serving import sounds
from recordings import recording

LIMIT_S = 2.0  # of processor time; the longest recording allowed takes a tenth of this
HANG_S = 60
LIMIT_BYTES = 1 << 30
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


def mend(data: bytes) -> bytes:
    """Give an OGG's pages their right checksums, so that damage reaches what lies behind them."""
    try:
        return b"".join(recordings.mended(page) for page in recordings.ogg_pages(data))
    except IndexError:  # no pages any more
        return data


def damaged(random: Random, files: list[bytes]) -> bytes:
    """One of the files, changed once or several times."""
    data = bytearray(random.choice(files))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if len(data) > 8:
            data = random.choice(MUTATIONS)(data, random, files)
    if data.startswith(b"OggS") and random.random() < MENDED_SHARE:
        return mend(bytes(data))
    return bytes(data)


def outcome(data: bytes, rate: int) -> str:
    """The error's code or the format; anything else that is raised goes on."""
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


def run(count: int, seed: int, keep: Path) -> Counter[str]:
    """Decode so many damaged files; returns how often each outcome came."""
    random, files = Random(seed), seeds()  # noqa: S311  damage, no secrets
    found: Counter[str] = Counter(outcome(data, RATES[0]) for data in files)
    slowest = 0.0
    kept = os.open(keep, os.O_CREAT | os.O_WRONLY)
    for _ in range(count):
        data = damaged(random, files)
        os.pwrite(kept, data, 0)
        os.ftruncate(kept, len(data))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        started = time.process_time()
        found[outcome(data, random.choice(RATES))] += 1
        spent = time.process_time() - started
        slowest = max(slowest, spent)
        if spent > LIMIT_S:
            raise AssertionError(f"a sound must decode within {LIMIT_S} s, took {spent:.1f} s")
    faulthandler.cancel_dump_traceback_later()
    keep.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"slowest {slowest:.2f} s, peak {peak} MB", *sorted(found.items()))  # noqa: T201
    return found


def main() -> None:
    """Read the arguments, set the limits, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("damaged"))
    args = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    run(args.count, args.seed, args.keep)


if __name__ == "__main__":
    main()
