"""Files damaged at random, and a decoder that must take them: within a limit of time and memory."""

import argparse
import faulthandler
import os
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

HANG_S = 60
LIMIT_BYTES = 1 << 30
HEAD_BYTES = 64


@dataclass(frozen=True)
class Decoder:
    """What is tried.

    Attributes:
        what: The name of what it decodes.
        files: Small real files of every kind.
        mend: Gives a damaged file its right checksums, sometimes.
        outcome: Decodes a file; an error's code, or the format.
        limit_s: Of processor time, for one file.
    """

    what: str
    files: list[bytes]
    mend: Callable[[bytes, Random], bytes]
    outcome: Callable[[bytes, Random], str]
    limit_s: float


def flip(data: bytearray, random: Random, _: list[bytes]) -> bytearray:
    """Turn over some bits."""
    for _flip in range(random.choice((1, 1, 2, 8, 64))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return data


def cut(data: bytearray, random: Random, _: list[bytes]) -> bytearray:
    """Leave out the end, or a piece of the middle."""
    start = random.randrange(len(data))
    stop = len(data) if random.random() < 0.5 else random.randrange(start, len(data))
    return data[:start] + data[stop:]


def splice(data: bytearray, random: Random, files: list[bytes]) -> bytearray:
    """Go on with another file, or with a piece of this one once more."""
    other = random.choice([*files, bytes(data)])
    place, start = random.randrange(len(data)), random.randrange(len(other))
    size = random.choice((4, 40, len(other)))
    return data[:place] + other[start : start + size] + data[place:]


def edit_head(data: bytearray, random: Random, _: list[bytes]) -> bytearray:
    """Write a number that is often wrong into the head, where sizes and offsets stand."""
    number = random.choice(
        (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x100, 0x1000, 0x1A00, 0x7FFF, 0xFFFF, 0xFFFFFFFF)
    )
    form = random.choice(("B", "<H", ">H", "<I", ">I"))
    value = number & ((1 << 8 * struct.calcsize(form)) - 1)
    struct.pack_into(form, data, random.randrange(min(HEAD_BYTES, len(data) - 4)), value)
    return data


MUTATIONS: tuple[Callable[[bytearray, Random, list[bytes]], bytearray], ...] = (
    flip,
    cut,
    splice,
    edit_head,
)


def damaged(random: Random, decoder: Decoder) -> bytes:
    """One of the files, changed once or several times."""
    data = bytearray(random.choice(decoder.files))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if len(data) > 8:
            data = random.choice(MUTATIONS)(data, random, decoder.files)
    return decoder.mend(bytes(data), random)


def run(decoder: Decoder, count: int, seed: int, keep: Path) -> None:
    """Decode the files, and so many damaged ones; print how often each outcome came."""
    random = Random(seed)  # noqa: S311  damage, no secrets
    found: Counter[str] = Counter(decoder.outcome(data, random) for data in decoder.files)
    slowest_s = 0.0
    kept = os.open(keep, os.O_CREAT | os.O_WRONLY)
    for _ in range(count):
        data = damaged(random, decoder)
        os.pwrite(kept, data, 0)
        os.ftruncate(kept, len(data))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        started = time.process_time()
        found[decoder.outcome(data, random)] += 1
        spent_s = time.process_time() - started
        slowest_s = max(slowest_s, spent_s)
        if spent_s > decoder.limit_s:
            raise AssertionError(
                f"a {decoder.what} must decode within {decoder.limit_s} s, took {spent_s:.1f} s"
            )
    faulthandler.cancel_dump_traceback_later()
    keep.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"slowest {slowest_s:.2f} s, peak {peak} MB", *sorted(found.items()))  # noqa: T201


def main(decoder: Decoder, description: str | None) -> None:
    """Read the arguments, set the limits, and run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("damaged"))
    args = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    run(decoder, args.count, args.seed, args.keep)
