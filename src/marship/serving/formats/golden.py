"""Golden requests: requests as clients send them, with the responses recorded for them.

They hold a handler of one's own, as golden cases hold the model: pictures, sounds, texts and
histories go in as bytes, and what comes out is compared with what came out when the archive was
packed. Workers replay them before they serve, `check` without a server, `rollout` over HTTP.

JSON is compared value by value: numbers with a fraction within the contract's tolerance, all else
exactly. Arrays in npy are compared likewise, other bodies byte by byte.
"""

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from marship.contract import GOLDEN_REQUESTS_FILE, Contract
from marship.errors import LoadError, RequestError
from marship.serving.formats import codec, forms
from marship.serving.message import JSON_TYPE, Reply

LINES_TYPE = "application/jsonl"
MOST_BYTES = 64 << 20
"""Of all of them, requests and responses: each worker reads them when it loads."""
_SHOWN = 60
_NOISE, _MOST_NOISE = 1e-6, 1e-3
"""What threads that add in another order may change, and what a clock changes at least."""


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """One request with its response.

    Attributes:
        name: What it is called in messages: its file's name.
        content_type: The request's media type.
        body: The request.
        response_type: The response's media type.
        response: The response's body.
    """

    name: str
    content_type: str
    body: bytes
    response_type: str
    response: bytes

    def difference(self, got: object, contract: Contract) -> str:
        """Where another response to this request differs; empty where the two agree.

        Args:
            got: What `value_of` makes of the response.
            contract: Has the tolerance.
        """
        return self._difference(got, ValueBounds.of(contract))

    def change(self, got: object) -> str:
        """Where a second response of the same machine differs; empty where the two agree.

        The contract's tolerance would let a clock through, which moves by a billionth.
        """
        return self._difference(got, ValueBounds(_NOISE, _NOISE, _MOST_NOISE))

    def _difference(self, got: object, bounds: "ValueBounds") -> str:
        want = value_of(self.response, self.response_type)
        for place, one, other in bounds.differences(got, want):
            return f"{place or 'a response'} of {_short(one)} in place of {_short(other)}"
        return ""


def write(requests: Sequence[GoldenRequest]) -> bytes:
    """The text of `golden_requests.json`; bodies are in Base64 (RFC 4648, 4)."""
    rows = [
        {
            "name": one.name,
            "content_type": one.content_type,
            "body": base64.b64encode(one.body).decode(),
            "response_type": one.response_type,
            "response": base64.b64encode(one.response).decode(),
        }
        for one in requests
    ]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read(data: bytes) -> list[GoldenRequest]:
    """Read what `write` wrote.

    Raises:
        LoadError: It is damaged.
    """
    try:
        return [
            GoldenRequest(
                name=str(row["name"]),
                content_type=str(row["content_type"]),
                body=base64.b64decode(row["body"], validate=True),
                response_type=str(row["response_type"]),
                response=base64.b64decode(row["response"], validate=True),
            )
            for row in orjson.loads(data)
        ]
    except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"{GOLDEN_REQUESTS_FILE} must hold golden requests, got {error!r}. Package the model "
            "again."
        ) from error


def value_of(body: bytes, content_type: str) -> Any:  # noqa: ANN401  by content type
    """A response as a value: JSON, the values of JSON lines, an array of npy, else its bytes."""
    kind = forms.kind_of(content_type)
    try:
        if kind == JSON_TYPE or kind.endswith("+json"):
            return orjson.loads(body)
        if kind == LINES_TYPE:
            return [orjson.loads(line) for line in body.splitlines() if line]
        if kind == codec.NPY_TYPE:
            return codec.read_npy(body)
    except (orjson.JSONDecodeError, RequestError):
        pass  # a body that is not what its type says is compared byte by byte
    return body


def replay(
    requests: Sequence[GoldenRequest],
    respond: Callable[[bytes, str], Reply],
    contract: Contract,
) -> int:
    """Send each request, and compare its response; returns how many there are.

    Args:
        requests: The requests.
        respond: Gives the whole response to a body of a media type.
        contract: Has the tolerance.

    Raises:
        LoadError: A response differs.
    """
    for one in requests:
        reply = respond(one.body, one.content_type)
        if reply.status != HTTPStatus.OK:
            found = f"status {reply.status}: {reply.body[:300].decode(errors='replace')}"
        elif reply.content_type != one.response_type:
            found = f"{reply.content_type} in place of {one.response_type}"
        else:
            found = one.difference(value_of(reply.body, reply.content_type), contract)
        if found:
            raise LoadError(differs(one, contract, found))
    return len(requests)


def differs(golden: GoldenRequest, contract: Contract, found: str) -> str:
    """The message about a response that is not the recorded one."""
    return (
        f"golden request {golden.name} must get the response that was recorded, numbers within "
        f"{contract.tolerance}, got {found}. Package the model again where the change is meant, "
        "or serve it on hardware that computes the same."
    )


@dataclass(frozen=True, slots=True)
class ValueBounds:
    """How far two numbers may be apart: by `absolute + relative * |want|`, and by `most`.

    Example:
        >>> from marship.serving.formats.golden import ValueBounds
        >>> list(ValueBounds(0.1, 0.0).differences({"a": [1.0, 2.0]}, {"a": [1.05, 2.5]}))
        [('a[1]', 2.0, 2.5)]
    """

    absolute: float
    relative: float
    most: float = math.inf

    @classmethod
    def of(cls, contract: Contract) -> "ValueBounds":
        """Those of the output that may differ most: nothing tells which one a number comes from."""
        tolerance = contract.tolerance
        largest = max(tolerance.absolute(spec.name) for spec in contract.outputs)
        return cls(largest, tolerance.rtol)

    def differences(self, got: Any, want: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
        """Each place where two values of responses differ, and what is there, in their order."""
        waiting = [("", _unnamed(got), _unnamed(want))]
        while waiting:  # not recursive: what a server sends may be nested deeply
            place, got, want = waiting.pop()
            if isinstance(got, dict) and isinstance(want, dict) and got.keys() == want.keys():
                waiting += [(_in(place, key), got[key], want[key]) for key in reversed(want)]
            elif isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
                pairs = list(enumerate(zip(got, want, strict=True)))
                waiting += [(f"{place}[{i}]", a, b) for i, (a, b) in reversed(pairs)]
            elif not self._agree(got, want):
                yield place, got, want

    def _agree(self, got: Any, want: Any) -> bool:  # noqa: ANN401  any JSON value
        if isinstance(got, np.ndarray) and isinstance(want, np.ndarray):
            if (got.shape, got.dtype) != (want.shape, want.dtype):
                return False
            if want.dtype.kind != "f":
                return bool(np.array_equal(got, want))
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.abs(got.astype(np.float64) - want)
                bounds = np.minimum(self.absolute + self.relative * np.abs(want), self.most)
            return bool((same | (gap <= bounds)).all())
        kinds = {type(got), type(want)}
        if float in kinds and kinds <= {int, float}:
            bound = min(self.absolute + self.relative * abs(want), self.most)
            return bool(abs(got - want) <= bound)
        return len(kinds) == 1 and bool(got == want)


def _unnamed(value: object) -> object:
    """A response without the model's name and version, which KServe v2 has: a server gives them."""
    if not (isinstance(value, dict) and {"model_name", "outputs"} <= value.keys()):
        return value
    return {key: part for key, part in value.items() if key not in ("model_name", "model_version")}


def _in(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
