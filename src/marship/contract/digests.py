"""Digests of a model's files."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


def digest_files(*paths: Path) -> str:
    """SHA-256 over the bytes of the files one after the other, in hexadecimal."""
    with ExitStack() as opened:
        return digest_streams(*(opened.enter_context(path.open("rb")) for path in paths))


def digest_variant(path: Path) -> str:
    """SHA-256 over a variant of a model, and over its weights where they lie beside it."""
    data = path.with_name(f"{path.name}.data")
    return digest_files(path, *([data] if data.is_file() else []))


def digest_streams(*streams: BinaryIO) -> str:
    """SHA-256 over the bytes of the streams one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for stream in streams:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
