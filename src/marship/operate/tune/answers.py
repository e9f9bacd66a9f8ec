"""Real requests, and whether their responses are those of the shipped settings.

Compared as golden requests are: JSON value by value, numbers within the tolerance of the archive's
contract. Among several numbers, as scores of classes are, the largest must stay the same one, too;
so must the order of what is named beside its score. Scores that are named or add up to 1, and no
other numbers, may be off by what `optimize` found a quantized variant to be off by.
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
_SUM_OFF = 0.01
"""Probabilities may be rounded, or float16."""
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
    references: Sequence[GoldenRequest],
    got: Sequence[GoldenRequest],
    shipped: Contract,
    own: Contract,
) -> float:
    """The share of requests whose responses are the same.

    Args:
        references: By the shipped settings.
        got: By a candidate, in the same order.
        shipped: The contract of the archive.
        own: Of the candidate; its tolerance, if it is the wider one, counts for scores.
    """
    wider = max(shipped, own, key=lambda one: one.tolerance.atol)
    same = sum(_is_same(*pair, shipped, wider) for pair in zip(references, got, strict=True))
    return same / len(references)


def _is_same(
    reference: GoldenRequest, got: GoldenRequest, shipped: Contract, wider: Contract
) -> bool:
    ours = golden.value_of(got.response, got.response_type)
    theirs = golden.value_of(reference.response, reference.response_type)
    if reference.difference(ours, wider if _has_only_scores(theirs) else shipped):
        return False
    return list(_largest(ours)) == list(_largest(theirs))


def _has_only_scores(value: Any) -> bool:  # noqa: ANN401  any JSON value, or an array
    """Whether each fraction is a probability of several, or the score of one of several names."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float):
            return False
        if isinstance(one, np.ndarray):
            if one.dtype.kind == "f" and not (one.ndim and _is_shared(one)):
                return False
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += _beside_scores(one)
    return True


def _is_shared(rows: "np.ndarray[Any, Any]") -> bool:
    """Whether the last axis has the probabilities of several classes."""
    is_one = np.abs(rows.sum(axis=-1, dtype=np.float64) - 1) < _SUM_OFF
    return rows.shape[-1] > 1 and bool((rows >= 0).all() and is_one.all())


def _beside_scores(row: list[Any]) -> Iterator[Any]:
    """What is not a probability in a row, or a score in a list of what has a name and a score."""
    if row and all(isinstance(one, float) for one in row) and _is_shared(np.array(row)):
        return
    is_ranking = len(row) > 1 and all(_has_score(one) for one in row)
    for one in row:
        if is_ranking:
            yield from (each for each in one.values() if not isinstance(each, float))
        else:
            yield one


def _has_score(one: Any) -> bool:  # noqa: ANN401  any JSON value
    """Whether it is a name with a score, or a fraction to 1: no price, and no times or corners."""
    if not isinstance(one, dict) or not any(isinstance(each, str) for each in one.values()):
        return False
    fractions = [(key, each) for key, each in one.items() if isinstance(each, float)]
    return len(fractions) == 1 and (fractions[0][0] == "score" or 0 <= fractions[0][1] <= 1)


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
