"""NAME.client.json: what a client of a private model must know; public, and without weights.

A copy of it lies in the archive, so the archive's signature holds the client file, too:
NAME.mar.sig states its digest, and a client needs no archive to check it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from marship import texts
from marship.errors import DataError, SignatureError, UsageError
from marship.trust.policy import Trust

FORMAT = 1
KINDS = ("he", "mpc")
"""Homomorphic encryption, and three parties."""
SUFFIX, ENCODER_SUFFIX, KNOWN_SUFFIX = ".client.json", ".encoder.onnx", ".known.npz"
ARCHIVED = "client.json"
"""Its name in an archive."""
ARCHIVE_SUFFIXES = {"he": ".mar", "mpc": ".party0.mar"}
"""Of the archive whose signature holds the client file."""
_MOST_BYTES = 64 << 20
_AGAIN = "Get it again from where the model is packaged."


@dataclass(frozen=True, slots=True)
class Tensor:
    """The input or the output: its name, and the shape of one row."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values in one row."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class ClientFile:
    """What a client knows of a model.

    Attributes:
        kind: One of `KINDS`.
        model: The model's name on the server.
        version: Its version there.
        digest: Of what the archive serves, as its contract states it.
        input: The model's input.
        output: Its output.
        error: How far a right answer may be from the model's.
        plan: What the kind needs beside it.
        encoder: SHA-256 of NAME.encoder.onnx, which the client runs before; None without.
        known: SHA-256 of NAME.known.npz, rows with their answers to check the server; None without.
    """

    kind: str
    model: str
    version: str
    digest: str
    input: Tensor
    output: Tensor
    error: float
    plan: Mapping[str, Any]
    encoder: str | None = None
    known: str | None = None

    def to_bytes(self) -> bytes:
        """The file."""
        return (
            json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True).encode()
            + b"\n"
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            value = texts.json_value(data, most_bytes=_MOST_BYTES)
            if value.pop("format") != FORMAT or value["kind"] not in KINDS:
                raise ValueError("another format or kind")
            tensors = {name: _tensor(value[name]) for name in ("input", "output")}
            found = cls(**{**value, **tensors})
            texts_of = (found.model, found.version, found.digest)
            if not all(isinstance(one, str) for one in texts_of) or not 0 < found.error < np.inf:
                raise ValueError("a name or an error of another type")
            beside = (found.encoder, found.known)
            if not isinstance(found.plan, dict) or not all(
                isinstance(o, str | None) for o in beside
            ):
                raise TypeError("a plan or a digest of another type")
        except (texts.TextError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"a client file must be one of marship's, got {error}. {_AGAIN}"
            ) from error
        return found


def read(path: Path, kind: str, trust: Path | None = None) -> ClientFile:
    """Read a client file.

    Args:
        path: NAME.client.json.
        kind: The kind that is wanted.
        trust: A folder of trusted keys: the signature NAME.mar.sig beside the file must be by one
            of them, and state this file. None takes the file as it is.

    Raises:
        UsageError: It cannot be read, or is of another kind.
        DataError: It is no client file.
        SignatureError: It is not the one that was signed.
    """
    try:
        with texts.open_file(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} must be a client file, got: {error.strerror}.") from error
    if trust is not None:
        _verify(path, data, Trust.load(trust), kind)
    found = ClientFile.from_bytes(data)
    if found.kind != kind:
        client = {"he": "HeClient", "mpc": "MpcClient"}[found.kind]
        raise UsageError(f"{path} must be of a model for {kind}, got {found.kind}. Use {client}.")
    return found


def read_beside(path: Path, suffix: str, digest: str | None, otherwise: str = "") -> bytes:
    """Read a file that lies beside a client file.

    Args:
        path: NAME.client.json.
        suffix: What follows NAME.
        digest: SHA-256, as the client file states it.
        otherwise: What else can be done without it.

    Raises:
        UsageError: It cannot be read.
        DataError: It is another one.
    """
    own = path.with_name(path.name.removesuffix(SUFFIX) + suffix)
    try:
        data = own.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{own} must lie beside the client file, got: {error.strerror}. Get it from where the "
            f"model is packaged{otherwise}."
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(
            f"{own} must be the one that the client file states, got another. Get both again."
        )
    return data


def _verify(path: Path, data: bytes, trust: Trust, kind: str) -> None:
    archive = path.with_name(path.name.removesuffix(SUFFIX) + ARCHIVE_SUFFIXES[kind])
    stated = trust.stated_file(archive, ARCHIVED)
    if stated.sha256 != hashlib.sha256(data).hexdigest():
        raise SignatureError(
            f"{path} must be the client file that was signed with {archive.name}, got another. "
            f"{_AGAIN}"
        )


def _tensor(value: Mapping[str, Any]) -> Tensor:
    tensor = Tensor(value["name"], tuple(value["shape"]))
    if not all(type(axis) is int and axis > 0 for axis in tensor.shape):
        raise ValueError("a shape that has no sizes")
    return tensor
