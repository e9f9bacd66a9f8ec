"""The golden cases of an archive, asked of the endpoint that serves it.

A worker replays them itself when it loads. Asked through the endpoint they prove the rest, too:
the wire, the handler, and that it is this version that answers.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from marship.client.clients import Client
from marship.contract import (
    GOLDEN_FILE,
    Array,
    Arrays,
    Contract,
    GoldenCase,
    agree,
    largest_difference,
    read_golden,
)
from marship.errors import PackageError, ParityError, TooLargeError
from marship.trust import outline
from marship.trust.archive import Archive

PLAIN_BASE = "OnnxHandler"
_CHANGES = {"answer", "decode", "encode", "handle", "reply"}
"""What a handler defines that takes other requests than tensors, or gives other answers."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What was asked.

    Attributes:
        asked: How many golden cases the endpoint answered as it must.
        too_large: How many the server does not take, or whose answer it does not give.
        difference: The largest absolute difference.
        reason: Why none was asked; empty where some were.
    """

    asked: int = 0
    too_large: int = 0
    difference: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"golden cases not asked: {self.reason}"
        more = f"; {self.too_large} are too large for the server" if self.too_large else ""
        return f"{self.asked} golden cases answered, at most {self.difference:.2g} off{more}"


def replay(client: Client, archive: Archive, name: str) -> Replay:
    """Ask a registered version its archive's golden cases, as JSON tensors by name.

    Args:
        client: Of the server.
        archive: What the version was registered from.
        name: The model's name on the server.

    Raises:
        ParityError: An answer is further from the reference's than the contract's tolerance.
        MarshipError: There is no answer.
    """
    contract = archive.contract
    if (reason := _obstacle(archive)) or contract is None:
        return Replay(reason=reason)
    asked, too_large, difference = 0, 0, 0.0
    for index, case in enumerate(_cases(archive)):
        try:
            answer = client.predict(name, case.inputs, version=archive.version)
        except TooLargeError:
            too_large += 1
            continue
        difference = max(difference, _checked(answer, case, contract, index))
        asked += 1
    return Replay(asked, too_large, difference)


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
    """Whether the handler leaves requests and answers to its base; its source is read, not run."""
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


def _checked(answer: Any, case: GoldenCase, contract: Contract, index: int) -> float:  # noqa: ANN401
    """How far the answer is from the reference's.

    Raises:
        ParityError: Too far, or it is none.
    """
    wanted = {name: _as_json_has_it(array) for name, array in case.outputs.items()}
    tolerance = contract.tolerance
    try:
        got: Arrays = {name: _array(answer[name], array) for name, array in wanted.items()}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ParityError(
            f"golden case {index} must be answered with {', '.join(wanted)}, got {error!r}."
        ) from error
    absolute, relative = largest_difference(got, wanted)
    if not agree(got, wanted, tolerance):
        raise ParityError(
            f"golden case {index} must be answered within {tolerance}, got a difference of "
            f"{absolute:g} ({relative:g} relative)."
        )
    return absolute


def _as_json_has_it(array: Array) -> Array:
    """JSON has neither NaN nor infinity: both are null."""
    return np.where(np.isfinite(array), array, np.nan) if array.dtype.kind == "f" else array


def _array(value: Any, like: Array) -> Array:  # noqa: ANN401  any JSON value
    array = np.asarray(value, dtype=like.dtype)
    return array.reshape(like.shape) if array.size == like.size == 0 else array
