"""Damage pictures of every format and decode them: only errors of a request may come out.

    python tests/fuzz_pictures.py --count 20000 --seed 1

Each file is decoded within a limit of time and of memory. The first that breaks a rule ends the
run, and is there to look at.
"""

import argparse
import faulthandler
import os
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

import photos
from marship.errors import RequestError
from marship.serving import pictures
from photos import encode

LIMIT_S = 5.0  # of processor time; the largest picture allowed takes about one
HANG_S = 60
LIMIT_BYTES = 1 << 30
SHORTEST = 16
HEAD_BYTES = 64
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def seeds() -> list[bytes]:
    """Small real files, of every format and most of their kinds."""
    image = photos.photo(40, 24)
    red = Image.new("RGB", (40, 24), "red")
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L"))
    files = [photos.animation(), photos.png(4, 3, (b"\0" + bytes(8)) * 3, 16, 0)]
    kinds = ({}, {"progressive": True}, {"subsampling": 0}, {"exif": EXIF})
    files += [encode(image, "JPEG", **options) for options in kinds]
    files += [encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    files += [encode(image.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1", "LA")]
    files += [encode(transparent, kind) for kind in ("PNG", "WEBP", "GIF")]
    files += [encode(image.quantize(3), kind) for kind in ("PNG", "GIF", "BMP")]
    files += [encode(image, "WEBP", lossless=lossless, exif=EXIF) for lossless in (True, False)]
    files.append(encode(image, "WEBP", save_all=True, append_images=[red]))
    files += [encode(image.convert(mode), "BMP") for mode in ("RGB", "L", "1", "RGBA")]
    run_length = bytearray(encode(image.convert("L"), "BMP"))
    run_length[30:34] = struct.pack("<I", 1)
    return [*files, bytes(run_length)]


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


def mend(data: bytearray) -> bytearray:
    """Give a PNG's chunks their right checksums, so that damage reaches what lies behind them."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        stop = place + 12 + length
        if stop > len(data):
            break
        data[stop - 4 : stop] = struct.pack(">I", zlib.crc32(data[place + 4 : stop - 4]))
        place = stop
    return data


def damaged(random: Random, files: list[bytes]) -> bytes:
    """One of the files, changed once or several times."""
    data = bytearray(random.choice(files))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if len(data) > 8:
            data = random.choice(MUTATIONS)(data, random, files)
    if data.startswith(b"\x89PNG") and random.random() < 0.7:
        data = mend(data)
    return bytes(data)


def outcome(data: bytes, shortest: int | None) -> str:
    """The error's code or the format; anything else that is raised goes on."""
    try:
        picture = pictures.decode(data, shortest)
    except RequestError as error:
        return error.code
    sides = (picture.height, picture.width)
    if shortest is None and picture.pixels.shape != (*sides, 3):
        raise AssertionError(f"pixels must be {sides}, got {picture.pixels.shape}")
    return picture.format


def run(count: int, seed: int, keep: Path) -> Counter[str]:
    """Decode so many damaged files; returns how often each outcome came."""
    random, files = Random(seed), seeds()  # noqa: S311  damage, no secrets
    found: Counter[str] = Counter(outcome(data, SHORTEST) for data in files)
    slowest = 0.0
    kept = os.open(keep, os.O_CREAT | os.O_WRONLY)
    for _ in range(count):
        data = damaged(random, files)
        os.pwrite(kept, data, 0)
        os.ftruncate(kept, len(data))
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        started = time.process_time()
        found[outcome(data, random.choice((None, SHORTEST)))] += 1
        spent = time.process_time() - started
        slowest = max(slowest, spent)
        if spent > LIMIT_S:
            raise AssertionError(f"a picture must decode within {LIMIT_S} s, took {spent:.1f} s")
    faulthandler.cancel_dump_traceback_later()
    keep.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"slowest {slowest:.2f} s, peak {peak} MB", *sorted(found.items()))  # noqa: T201
    return found


def main() -> None:
    """Read the arguments, set the limits, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("damaged"))
    args = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    run(args.count, args.seed, args.keep)


if __name__ == "__main__":
    main()
