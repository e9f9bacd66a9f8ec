"""Replays the golden cases and requests of an archive against the endpoint that serves it.

A worker replays them itself when it loads. Replayed over HTTP they also cover the protocol, the
handler, and that the endpoint serves this version.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np

from marship.client.clients import Client
from marship.contract import (
    GOLDEN_FILE,
    GOLDEN_REQUESTS_FILE,
    Array,
    Arrays,
    Contract,
    GoldenCase,
    read_golden,
)
from marship.contract.tolerance import agree, largest_difference
from marship.errors import PackageError, ParityError, TooLargeError
from marship.serving.formats import golden
from marship.trust import outline
from marship.trust.archive import Archive

PLAIN_BASE = "OnnxHandler"
_CHANGES = {"answer", "decode", "encode", "handle", "reply"}
"""Methods that a handler overrides if its requests or responses are not plain tensors."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of a replay.

    Attributes:
        replayed: How many golden cases the endpoint predicted within their tolerance.
        requests: How many golden requests got the response that was recorded.
        too_large: How many exceed the server's limits for a request or a response.
        difference: The largest absolute difference.
        reason: Why no golden case was replayed; empty if some were.
    """

    replayed: int = 0
    requests: int = 0
    too_large: int = 0
    difference: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.requests:
            also = "" if self.reason else f"; {replace(self, requests=0)}"
            plural = "s" if self.requests > 1 else ""
            return f"{self.requests} golden request{plural} replayed{also}"
        if self.reason:
            return f"golden cases not replayed: {self.reason}"
        more = f"; {self.too_large} are too large for the server" if self.too_large else ""
        return (
            f"{self.replayed} golden cases replayed, largest difference {self.difference:.2g}{more}"
        )


def replay(client: Client, archive: Archive, name: str) -> Replay:
    """Send an archive's golden requests, and its golden cases as JSON tensors by name.

    Args:
        client: The server's client.
        archive: The archive that the version was registered from.
        name: The model's name on the server.

    Raises:
        ParityError: A response differs from the reference by more than the contract's tolerance.
        LoadError: The golden requests are damaged.
        MarshipError: A prediction failed.
    """
    contract = archive.contract
    requests = 0 if contract is None else _replay_requests(client, archive, name, contract)
    if (reason := _obstacle(archive)) or contract is None:
        return Replay(requests=requests, reason=reason)
    replayed, too_large, difference = 0, 0, 0.0
    for index, case in enumerate(_cases(archive)):
        try:
            response = client.predict(name, case.inputs, version=archive.version)
        except TooLargeError:
            too_large += 1
            continue
        difference = max(difference, _checked(response, case, contract, index))
        replayed += 1
    return Replay(replayed, requests, too_large, difference)


def _replay_requests(client: Client, archive: Archive, name: str, contract: Contract) -> int:
    """Send the golden requests that are not sealed; returns how many there are."""
    if GOLDEN_REQUESTS_FILE not in {member.name for member in archive.members}:
        return 0
    requests = golden.read(archive.contents(GOLDEN_REQUESTS_FILE))
    for one in requests:
        response = client.predict(
            name, one.body, version=archive.version, content_type=one.content_type
        )
        if isinstance(response, bytes):  # of a type that the client leaves as it is
            response = golden.value_of(response, one.response_type)
        if found := one.difference(response, contract):
            raise ParityError(golden.differs(one, contract, found))
    return len(requests)


def _obstacle(archive: Archive) -> str:
    names = {member.name for member in archive.members}
    if any(name.startswith(GOLDEN_FILE) for name in archive.sealed):
        return "its golden cases are sealed"
    if archive.contract is None or GOLDEN_FILE not in names:
        return "it holds no golden cases"
    if not _takes_tensors(archive):
        return "its handler takes other requests than tensors"
    return ""


def _takes_tensors(archive: Archive) -> bool:
    """Whether the handler inherits decoding and encoding; its source is parsed, not run."""
    name = archive.handler.partition(":")[0]
    if name not in {member.name for member in archive.members}:
        return False
    try:
        found = outline.outline(archive.python(name), name)
    except outline.SourceError as error:
        raise PackageError(
            f"{name} in {archive.path} must be Python, got: {error}. Package the model again."
        ) from error
    return len(found.classes) == 1 and _is_plain(found.classes[0])


def _is_plain(kind: outline.Class) -> bool:
    bases = [base.rpartition(".")[2] for base in kind.bases]
    return bases == [PLAIN_BASE] and not _CHANGES & set(kind.functions)


def _cases(archive: Archive) -> list[GoldenCase]:
    return read_golden(BytesIO(archive.contents(GOLDEN_FILE)))


def _checked(response: Any, case: GoldenCase, contract: Contract, index: int) -> float:  # noqa: ANN401
    """The response's absolute difference from the reference.

    Raises:
        ParityError: It exceeds the tolerance, or the response lacks an output.
    """
    wanted = {name: _as_json_has_it(array) for name, array in case.outputs.items()}
    tolerance = contract.tolerance
    try:
        got: Arrays = {name: _array(response[name], array) for name, array in wanted.items()}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ParityError(
            f"golden case {index} must give {', '.join(wanted)}, got {error!r}."
        ) from error
    absolute, relative = largest_difference(got, wanted)
    if not agree(got, wanted, tolerance):
        raise ParityError(
            f"golden case {index} must agree within {tolerance}, got a difference of "
            f"{absolute:g} ({relative:g} relative)."
        )
    return absolute


def _as_json_has_it(array: Array) -> Array:
    """As after a JSON round trip, which has neither NaN nor infinity: both are null."""
    return np.where(np.isfinite(array), array, np.nan) if array.dtype.kind == "f" else array


def _array(value: Any, like: Array) -> Array:  # noqa: ANN401  any JSON value
    array = np.asarray(value, dtype=like.dtype)
    return array.reshape(like.shape) if array.size == like.size == 0 else array
