"""Samples of requests: sealed files in a folder, from which a model is calibrated or tuned later.

A sample is `FOLDER/MODEL/VERSION/TIME-RANDOM.sealed`, of the format of `sealed.py`, bound to model,
version and name. In it are a line of JSON, see `RequestSample`, and the body. Names of models and
versions are percent-encoded.

It is encrypted under a key that is derived from the operator's: a worker that takes samples keeps
that one, which opens samples and no sealed model.
"""

import fcntl
import hmac
import io
import json
import logging
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import orjson

from marship.errors import SealError
from marship.serving.formats import kserve
from marship.serving.hosts.direct.exchange import Exchange
from marship.serving.hosts.direct.heads import COPY
from marship.serving.message import Reply
from marship.serving.model import dumps, keysource, sealed
from marship.serving.model.sealed import SUFFIX, Sealer

logger = logging.getLogger(__name__)

SAMPLES_VARIABLE = "MARSHIP_SAMPLES"
"""JSON: the folder, and the share of requests; set by the host."""
MOST_FILES = 10_000
"""Of one version of a model; those that are deleted make room."""
_DRAFT, _LOCK = ".draft", ".lock"
_WRITE_S, _FULL_S = 0.25, 60.0
_MOST_WAITING_BYTES, _OWN_BYTES = 1 << 25, 1 << 10
_JSON_BYTES = kserve.LENGTH_HEADER.lower().encode()
_OK = 200


def key_of(operator: bytes) -> bytes:
    """The key of samples: HKDF-Expand of the operator's key (RFC 5869, 2.3), one block."""
    return hmac.digest(operator, b"marship samples\x01", "sha256")


def folder_of(root: Path, model: str, version: str) -> Path:
    """Where samples of a version lie.

    Example:
        >>> folder_of(Path("samples"), "a/b", "1.0"), folder_of(Path("samples"), "..", "1")
        (PosixPath('samples/a%2Fb/1.0'), PosixPath('samples/%2E./1'))
    """
    return root / _named(model) / _named(version)


def _named(text: str) -> str:
    name = quote(text, safe="")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name


@dataclass(frozen=True, slots=True)
class RequestSample:
    """A request as it came, without its other headers, its client's address and its token.

    Attributes:
        path: Of the request, without the query.
        query: As it came.
        content_type: The header's value; empty without one.
        content_encoding: The same.
        json_bytes: Of KServe's raw tensors, the bytes of JSON before them; empty without a header.
        body: The bytes that came.

    Example:
        >>> sample = RequestSample("/predictions/m", "k=3", "application/json", "", "", b"[[1]]")
        >>> RequestSample.unpack(sample.pack()) == sample
        True
    """

    path: str
    query: str
    content_type: str
    content_encoding: str
    json_bytes: str
    body: bytes

    @classmethod
    def of(cls, exchange: Exchange) -> "RequestSample":
        """What is kept of a request."""
        head = exchange.head

        def header(name: bytes) -> str:
            return head.raw.get(name, b"").decode("latin-1")

        return cls(
            head.path.decode("latin-1"),
            head.query.decode("latin-1"),
            header(b"content-type"),
            header(b"content-encoding"),
            header(_JSON_BYTES),
            exchange.body,
        )

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return _OWN_BYTES + sum(len(getattr(self, name)) for name in self.__slots__)

    def pack(self) -> bytes:
        """The bytes that are sealed."""
        names = [name for name in self.__slots__ if name != "body"]
        return orjson.dumps({name: getattr(self, name) for name in names}) + b"\n" + self.body

    @classmethod
    def unpack(cls, data: bytes) -> "RequestSample":
        """A sample of its bytes.

        Raises:
            ValueError: They are none of a sample.
        """
        line, _, body = data.partition(b"\n")
        try:
            return cls(**orjson.loads(line), body=body)
        except (TypeError, ValueError) as error:
            raise ValueError("no facts of a request") from error


def opened(path: Path, key: bytes, model: str, version: str) -> RequestSample:
    """The sample in a sealed file.

    Args:
        path: The file.
        key: From `key_of`.
        model: The model that it must be of.
        version: The version that it must be of.

    Raises:
        SealError: Wrong key, altered, or of another model or version.
        OSError: It cannot be read.
    """
    bound = sealed.binding(model, version, path.name)
    with path.open("rb") as file:
        header = sealed.SealHeader.parse(file.read(sealed.HEADER_BYTES), str(path))
        data_key = sealed.unwrap(header, key, bound, str(path))
        data = sealed.decrypt(file, data_key, bound, str(path)).tobytes()
    try:
        return RequestSample.unpack(data)
    except ValueError as error:
        raise SealError(f"{path} must hold a sample of a request, got: {error}.") from error


class SampleWriter:
    """Writes a share of the requests that are answered with 200, from a thread of its own.

    Where a disk is too slow, or full, samples are dropped, never requests: what waits is at most
    32 MiB and one request.

    Args:
        root: The folder for samples of all models; it exists.
        share: Of requests, 0 to 1.
        key: From `key_of`.
        model: The model's name.
        version: Its version.

    Raises:
        SealError: The library that encrypts is not installed.
    """

    def __init__(self, root: Path, share: float, key: bytes, model: str, version: str) -> None:
        sealed.cipher(key)
        self._folder = folder_of(root, model, version)
        self._share, self._sealer = share, Sealer(key, model, version)
        self._draw = random.Random().random  # noqa: S311  which ones is no secret; nobody seeds it
        self._waiting: deque[RequestSample] = deque()
        self._waiting_bytes, self._lock = 0, threading.Lock()
        self._is_full, self._problem = False, ""
        threading.Thread(target=self._run, name="samples", daemon=True).start()

    def add(self, batch: Sequence[Exchange], replies: Sequence[Reply]) -> None:
        """Sample a batch that is done.

        Args:
            batch: Its requests.
            replies: The response to each, or the last part of it.
        """
        for exchange, reply in zip(batch, replies, strict=True):
            if self._draw() >= self._share or self._is_full:
                continue
            is_answered = reply.status == _OK and not reply.more and not exchange.is_abandoned
            is_copy = COPY in exchange.head.raw  # sampled where its client's response is from
            if is_answered and exchange.body and not is_copy:
                self._put(RequestSample.of(exchange))

    def _put(self, sample: RequestSample) -> None:
        with self._lock:
            if self._waiting_bytes < _MOST_WAITING_BYTES:
                self._waiting.append(sample)
                self._waiting_bytes += sample.size_bytes

    def _run(self) -> None:
        while True:
            time.sleep(_FULL_S if self._is_full else _WRITE_S)
            self._is_full = False  # some may have been deleted
            if self._waiting:
                try:
                    self.write()
                except OSError as error:
                    self._drop()
                    self._say(f"samples must be written to {self._folder}, got: {error}")

    def write(self) -> None:
        """Write what waits, as far as there is room.

        All workers of a version share a lock while they write, so they count files in turns, and
        a draft that another one finds is that of a worker that was killed.

        Raises:
            OSError: The folder cannot be written to.
        """
        for place in (self._folder.parent, self._folder):
            place.mkdir(mode=0o700, exist_ok=True)
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            names = os.listdir(self._folder)  # noqa: PTH208  a path of each would take longer
            for name in names:
                if name.endswith(_DRAFT):
                    (self._folder / name).unlink()
            room = MOST_FILES - sum(name.endswith(SUFFIX) for name in names)
            count = len(self._waiting)
            for _ in range(min(count, room)):
                self._write(self._take())
        self._is_full = count >= room
        self._say(
            f"{self._folder} must have fewer than {MOST_FILES} samples, got as many. Delete some, "
            "or no more are taken."
            if self._is_full
            else ""
        )

    def _say(self, problem: str) -> None:
        """Log a problem once, until there is none or another one."""
        if problem and problem != self._problem:
            logger.warning("%s", problem)
        self._problem = problem

    def _drop(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._waiting_bytes = 0

    def _take(self) -> RequestSample:
        with self._lock:
            sample = self._waiting.popleft()
            self._waiting_bytes -= sample.size_bytes
            return sample

    def _write(self, sample: RequestSample) -> None:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(8)}{SUFFIX}"
        draft = self._folder / f"{name}{_DRAFT}"
        try:
            number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(number, "wb") as file:
                self._sealer.seal(name, io.BytesIO(sample.pack()), file)
            draft.rename(self._folder / name)  # unsynced: a power failure may cut it, which is seen
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def told(model: str, version: str, *, is_private: bool) -> SampleWriter | None:
    """The sampler that the environment asks for, if it does.

    To be called before the model is loaded, which forgets the key. Core dumps are disabled before
    it is read.

    Args:
        model: The model's name.
        version: Its version.
        is_private: Whether requests are encrypted by clients: none is sampled then.

    Raises:
        UsageError: No source of a key is named.
        SealError: There is no key, or the library that encrypts is not installed.
    """
    given = os.environ.get(SAMPLES_VARIABLE)
    if not given:
        return None
    if is_private:
        logger.warning("no requests to %s %s are sampled: clients encrypt them.", model, version)
        return None
    asked = json.loads(given)
    dumps.forbid()
    key = key_of(keysource.read(os.environ.get(keysource.SOURCE_VARIABLE, "")))
    return SampleWriter(Path(asked["folder"]), float(asked["share"]), key, model, version)
