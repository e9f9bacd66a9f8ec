"""Real requests, and whether their responses are those of the shipped settings.

Compared as golden requests are: JSON value by value, numbers within the contract's tolerance, which
for a quantized variant is what `optimize` found it to be off by. Among several numbers, as scores
of classes are, the largest must stay the same one, too.
"""

import http.client
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Contract
from marship.errors import DataError, UsageError
from marship.operate.tune.load import Endpoint
from marship.predict import sources
from marship.serving.formats import golden
from marship.serving.formats.golden import GoldenRequest

MOST_REQUESTS, MOST_BYTES = 256, 256 << 20
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request as clients send it: its file's name, media type and body."""

    name: str
    content_type: str
    body: bytes


def read(place: Path) -> list[SampleRequest]:
    """Requests from a file, or a folder of them, by `predict`'s rules; evenly spread if many.

    Raises:
        UsageError: There are none, or they are too large together.
    """
    found = sources.find([str(place)], advice="Name another folder with --requests.").sources
    chosen = [found[int(n)] for n in np.linspace(0, len(found) - 1, min(len(found), MOST_REQUESTS))]
    size_bytes = sum(one.path.stat().st_size for one in chosen)
    if size_bytes > MOST_BYTES:
        raise UsageError(
            f"requests in {place} must take at most {MOST_BYTES >> 20} MiB, since all are held in "
            f"memory, got {size_bytes >> 20}. Name a folder with fewer."
        )
    return [SampleRequest(one.name, one.kind, one.read()) for one in chosen]


def ask(endpoint: Endpoint, samples: Sequence[SampleRequest]) -> Iterator[GoldenRequest]:
    """Each request with the response that the endpoint gives.

    Raises:
        DataError: One is refused.
        OSError: The server cannot be reached.
    """
    line = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_TIMEOUT_S)
    try:
        for one in samples:
            headers = {"Content-Type": one.content_type, **endpoint.headers}
            line.request("POST", endpoint.path, one.body, headers)
            response = line.getresponse()
            body = response.read()
            if response.status != HTTPStatus.OK:
                found = f"{response.status}: {body[:300].decode(errors='replace')}"
                raise DataError(
                    f"the request in {one.name} must be answered, got status {found}. Leave it out."
                )
            kind = response.headers.get("Content-Type", "")
            yield GoldenRequest(one.name, one.content_type, one.body, kind, body)
    finally:
        line.close()


def unchanged(
    references: Sequence[GoldenRequest], got: Sequence[GoldenRequest], contracts: Sequence[Contract]
) -> float:
    """The share of requests whose responses are the same.

    Args:
        references: By the shipped settings.
        got: By a candidate, in the same order.
        contracts: Of both archives; the wider tolerance counts, since either may be quantized.
    """
    contract = max(contracts, key=lambda one: one.tolerance.atol)
    same = sum(_is_same(*pair, contract) for pair in zip(references, got, strict=True))
    return same / len(references)


def _is_same(reference: GoldenRequest, got: GoldenRequest, contract: Contract) -> bool:
    ours = golden.value_of(got.response, got.response_type)
    theirs = golden.value_of(reference.response, reference.response_type)
    if reference.difference(ours, contract):
        return False
    return list(_largest(ours)) == list(_largest(theirs))


def _largest(value: Any) -> Iterator[int]:  # noqa: ANN401  any JSON value, or an array
    """The place of the largest of each row of several fractions, in their order."""
    waiting = [value]
    while waiting:  # not recursive: what a server sends may be nested deeply
        one = waiting.pop()
        if isinstance(one, np.ndarray):
            if one.dtype.kind == "f" and one.ndim and one.shape[-1] > 1:
                yield from one.argmax(axis=-1).ravel().tolist()
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            if len(one) > 1 and all(isinstance(item, float) for item in one):
                yield one.index(max(one))
            else:
                waiting += one
