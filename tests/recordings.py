"""Recordings to test with, made here: tones that come and go like syllables."""

import io
import struct
from functools import cache

import numpy as np
import soundfile

from marship.serving.sounds import ogg

KINDS = {  # what soundfile calls them
    "wav, 8 bits": ("WAV", "PCM_U8"),
    "wav, 16 bits": ("WAV", "PCM_16"),
    "wav, 24 bits": ("WAV", "PCM_24"),
    "wav, 32 bits": ("WAV", "PCM_32"),
    "wav, float": ("WAV", "FLOAT"),
    "wav, double": ("WAV", "DOUBLE"),
    "wav, mu-law": ("WAV", "ULAW"),
    "wav, A-law": ("WAV", "ALAW"),
    "wav, extensible": ("WAVEX", "PCM_24"),
    "wav, extensible float": ("WAVEX", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "flac, 24 bits": ("FLAC", "PCM_24"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
WAVS = [kind for kind in KINDS if kind.startswith("wav")]
OTHERS = [kind for kind in KINDS if not kind.startswith("wav")]
ID3V2 = b"ID3\x04\0\0\0\0\x01\0" + b"\xff\xfb\x90\x44".ljust(128, b"\xff")
ID3V1 = b"TAG".ljust(128, b"\0")
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 40, 0, 0) + bytes(48)


@cache
def voice(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """float32, shape (samples, channels): no two channels and no two seconds are alike."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0)
    tracks = []
    for channel in range(channels):
        pitch = 150 + 40 * channel + 30 * np.sin(1.7 * time)
        tones = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 8))
        loud = np.clip(np.sin(2 * np.pi * 2.3 * time + channel), 0.02, 1)
        tracks.append(0.25 * loud * tones + noise.normal(0, 0.003, len(time)))
    return np.stack(tracks, 1).clip(-0.95, 0.95).astype(np.float32)


def encode(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """A file of this kind, as libsndfile writes it."""
    container, codec = KINDS[kind]
    sink = io.BytesIO()
    with soundfile.SoundFile(sink, "w", rate, samples.shape[1], codec, format=container) as file:
        for start in range(0, len(samples), 4096):  # its Vorbis overflows the stack on more
            file.write(samples[start : start + 4096])
    return sink.getvalue()


def recording(kind: str, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> bytes:
    """A file of this kind with a voice in it."""
    return encode(voice(seconds, rate, channels), rate, kind)


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    """What libsndfile makes of a file: float32, shape (samples, channels), and the rate."""
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """A RIFF chunk, that may lie about its size."""
    claimed = len(content) if size is None else size
    return name + struct.pack("<I", claimed) + content + bytes(len(content) % 2)


def wav(  # noqa: PLR0913  each a lie to be told
    samples: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    size: int | None = None,
    riff_size: int | None = None,
    after: bytes = b"",
) -> bytes:
    """A WAV of these bytes, that may lie about anything."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    chunks = b"WAVE" + chunk(b"fmt ", form) + chunk(b"data", samples, size) + after
    return b"RIFF" + struct.pack("<I", len(chunks) if riff_size is None else riff_size) + chunks


def flac_claiming(data: bytes, frames: int) -> bytes:
    """A FLAC that says it has so many frames."""
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames
    return data[:18] + fields.to_bytes(8, "big") + data[26:]


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an OGG."""
    pages, place = [], 0
    while place < len(data):
        segments = data[place + 26]
        stop = place + 27 + segments + sum(data[place + 27 : place + 27 + segments])
        pages.append(data[place:stop])
        place = stop
    return pages


def mended(page: bytes, **fields: int) -> bytes:
    """A page with its right checksum, and other fields where they are given."""
    places = {"flags": ("<B", 5), "granule": ("<q", 6), "serial": ("<I", 14), "number": ("<I", 18)}
    edited = bytearray(page)
    for name, value in fields.items():
        struct.pack_into(places[name][0], edited, places[name][1], value)
    edited[22:26] = bytes(4)
    edited[22:26] = ogg._checksum(bytes(edited)).to_bytes(4, "little")
    return bytes(edited)


def without_xing(data: bytes) -> bytes:
    """An MP3 without its first frame, which tells how many there are."""
    return data[data.index(data[:2], 4) :]


def xing_claiming(data: bytes, frames: int) -> bytes:
    """An MP3 that says it has so many frames."""
    place = max(data.find(b"Xing"), data.find(b"Info")) + 8
    return data[:place] + struct.pack(">I", frames) + data[place + 4 :]
