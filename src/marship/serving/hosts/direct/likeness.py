"""Whether two versions respond alike to one request."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from marship.serving.formats import kserve
from marship.serving.formats.forms import kind_of
from marship.serving.formats.golden import ValueBounds, value_of
from marship.serving.hosts.direct.outcome import Likeness, VersionResponse
from marship.serving.hosts.direct.trial import TrialOrder

MOST_BYTES = 1 << 20
"""Of a response that is compared: both are parsed, which takes milliseconds."""
JSON_LENGTH = kserve.LENGTH_HEADER.lower()
"""The header with `VersionResponse.json_bytes`."""
_MOST_SHOWN = 80
_ALIKE = Likeness(differs=False)
_MOST_LENGTHS = 8


def compare(
    new: VersionResponse,
    default: VersionResponse,
    order: TrialOrder,
    *,
    request: bytes = b"",
    request_type: str = "",
) -> Likeness:
    """Compare the responses of two versions.

    JSON, JSON lines and npy are compared value by value, as golden requests are. Other bodies that
    are not the same bytes are not comparable: encrypted ones differ each time.

    Args:
        new: The new version's.
        default: The default version's.
        order: Says how far numbers may be apart.
        request: The body of the request.
        request_type: Its content type.

    Returns:
        Places and distances in it, and nothing else of the responses.
    """
    found = known(new, default)
    if found is not None:
        return found
    return _of_bodies(new, default, order, _only(rows(value_of(request, request_type))))


def known(new: VersionResponse, default: VersionResponse) -> Likeness | None:
    """What is to be seen without parsing; None where the bodies must be parsed."""
    if new.status != default.status:
        both = max(new.status, default.status) < HTTPStatus.BAD_REQUEST
        place = f"status {new.status} in place of {default.status}"
        return Likeness(differs=True, place=place, is_other_form=both)
    if new.status >= HTTPStatus.BAD_REQUEST:  # both refuse it; texts of errors have ids
        return _ALIKE
    if kind_of(new.content_type) != kind_of(default.content_type):
        return Likeness(differs=True, place="another media type", is_other_form=True)
    if new.body == b"" != default.body:
        return Likeness(differs=True, place="an empty response", is_other_form=True)
    if new.body is None or default.body is None:
        return Likeness(differs=None)
    return _ALIKE if new.body == default.body else None


def _of_bodies(
    new: VersionResponse, default: VersionResponse, order: TrialOrder, asked: int | None
) -> Likeness:
    got, want = map(_value, (new, default))
    if isinstance(want, bytes):
        return Likeness(differs=None)
    if isinstance(got, bytes):
        place = f"a response that is not {new.content_type[:_MOST_SHOWN]}"
        return Likeness(differs=True, place=place, is_other_form=True)
    found = _of_values(got, want, ValueBounds(order.absolute, order.relative))
    return found if asked is None else _of_rows(found, rows(got), rows(want), asked)


def _of_rows(
    found: Likeness, got: Mapping[str, int], want: Mapping[str, int], asked: int
) -> Likeness:
    """Whether each version has as many rows as the request, where the default one does."""
    alike = [place for place, count in want.items() if count == asked]
    lost = next((place for place in alike if got.get(place) != asked), None)
    if lost is None or found.is_other_form:
        return replace(found, follows_rows=bool(alike))
    text = f"{lost[:_MOST_SHOWN] or 'the response'} has {got.get(lost, 0)} rows in place of {asked}"
    return replace(found, differs=True, place=text, follows_rows=True, loses_rows=True)


def rows(value: Any) -> dict[str, int]:  # noqa: ANN401  any JSON value
    """How many rows a request or a response has, by place: of arrays, and of lists not far inside.

    Example:
        >>> from marship.serving.hosts.direct.likeness import rows
        >>> rows({"inputs": {"x": [[1, 2], [3, 4]]}})
        {'inputs.x': 2}
    """
    if isinstance(value, np.ndarray):
        return {"": value.shape[0]} if value.ndim else {}
    if isinstance(value, list):
        return {"": len(value)}
    if not isinstance(value, dict):
        return {}
    for key in ("inputs", "outputs"):  # KServe v2
        if isinstance(value.get(key), list):
            return dict(_of_tensors(value[key]))
    inner = {key: part for key, part in value.items() if isinstance(part, dict)}
    found = {key: len(part) for key, part in value.items() if isinstance(part, list)}
    for key, part in inner.items():
        found |= {f"{key}.{k}": len(one) for k, one in part.items() if isinstance(one, list)}
    return found


def _of_tensors(tensors: list[Any]) -> Iterator[tuple[str, int]]:
    for tensor in tensors:
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if isinstance(shape, list) and shape and isinstance(shape[0], int):
            yield str(tensor.get("name")), shape[0]


def _only(counts: Mapping[str, int]) -> int | None:
    """The one number of rows that a request has; None where its parts have several."""
    return next(iter(counts.values())) if len(set(counts.values())) == 1 else None


def _value(response: VersionResponse) -> Any:  # noqa: ANN401  by content type
    """A response as a value; with KServe's binary tensors as arrays, where they can be read."""
    body = response.body or b""
    if not response.json_bytes.isdigit():
        return value_of(body, response.content_type)
    try:
        return _binary(body, int(response.json_bytes))
    except (ValueError, TypeError, KeyError, AttributeError):
        return body


def _binary(body: bytes, json_bytes: int) -> Any:  # noqa: ANN401  any JSON value
    value, place = orjson.loads(body[:json_bytes]), json_bytes
    for output in value["outputs"]:
        size = (output.get("parameters") or {}).pop("binary_data_size", None)
        if size is not None:
            raw, place = body[place : place + size], place + size
            if len(raw) != size:
                raise ValueError
            dtype = kserve.DTYPES.get(output["datatype"], "str")
            output["data"] = raw.hex() if dtype == "str" else np.frombuffer(raw, dtype).tolist()
    return value


def _of_values(got: Any, want: Any, bounds: ValueBounds) -> Likeness:  # noqa: ANN401  any JSON value
    keys = "\n".join(sorted(_keys(_by_name(want))))
    digest = blake2b(keys.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    found = unreadable(_by_name(got), _by_name(want))
    if found is not None:
        place, is_keyless = found
        what = "is missing" if is_keyless else "has another form"
        text = f"{place[:_MOST_SHOWN] or 'the response'} {what}"
        return Likeness(True, 0.0, text, not is_keyless, is_keyless, digest)
    first, largest = "", 0.0
    for place, one, other in bounds.differences(got, want):
        gap = _gap(one, other)
        largest = max(largest, gap or 0.0)
        first = first or f"{place[:_MOST_SHOWN] or 'the response'} {_said(one, other, gap)}"
    sizes = lengths(want), lengths(got)
    return Likeness(bool(first), largest, first, False, False, digest, *sizes)


def _keys(value: Any) -> Iterator[str]:  # noqa: ANN401  any JSON value
    """The keys in a response, with the keys that they are under."""
    waiting = [("", value)]
    while waiting:
        place, one = waiting.pop()
        if isinstance(one, dict):
            for key, part in one.items():
                inside = f"{place}.{key}"
                yield inside
                waiting.append((inside, part))
        elif isinstance(one, list):
            waiting += [(place, part) for part in one]


def _by_name(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """A response of KServe v2 with its outputs by their names, which programs look for."""
    if not (isinstance(value, dict) and {"model_name", "outputs"} <= value.keys()):
        return value
    try:
        return {
            one["name"]: (one["datatype"], len(one["shape"]), one.get("data"))
            for one in value["outputs"]
        }
    except (TypeError, KeyError, AttributeError):  # a handler's own
        return value


def unreadable(got: Any, want: Any) -> tuple[str, bool] | None:  # noqa: ANN401  any JSON value
    """The first place where a program that reads one value cannot read the other.

    More keys and other lengths are no hindrance, nor is a value in place of null, or a number of
    another precision.

    Returns:
        The place, and whether it is a key that is missing; None where there is none.

    Example:
        >>> from marship.serving.hosts.direct.likeness import unreadable
        >>> unreadable({"tags": ["a"], "more": 1}, {"tags": ["b", "c"]})
        >>> unreadable({"labels": ["a"]}, {"tags": ["b"]})
        ('tags', True)
    """
    waiting = [("", got, want)]
    while waiting:  # not recursive: responses may be nested deeply
        place, got, want = waiting.pop()
        if want is None:
            continue
        if _kind(got) != _kind(want):
            return place, False
        if isinstance(want, dict):
            for key, value in want.items():
                inside = f"{place}.{key}" if place else str(key)
                if key not in got:
                    return inside, True
                waiting.append((inside, got[key], value))
        elif isinstance(want, tuple):  # an output: its type, its axes, and its values
            if got[:2] != want[:2]:
                return place, False
            waiting.append((place, got[2], want[2]))
        elif isinstance(want, list):
            pairs = enumerate(zip(got, want, strict=False))
            waiting += [(f"{place}[{i}]", a, b) for i, (a, b) in pairs]
    return None


def _kind(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.ndim
    return float if type(value) is int else type(value)


def lengths(value: Any) -> tuple[int, ...]:  # noqa: ANN401  any JSON value
    """The lengths of lists of several numbers in a response, each once; of an array, its last axis.

    One number may be one by chance, as the score of the only box.

    Example:
        >>> from marship.serving.hosts.direct.likeness import lengths
        >>> lengths({"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [0.5, 0.25]})
        (2, 4)
    """
    found, waiting = set[int](), [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, np.ndarray):
            found.add(one.shape[-1] if one.ndim else 1)
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            if one and all(type(part) in (int, float) for part in one):
                found.add(len(one))
            else:
                waiting += one
    return tuple(sorted(found - {1})[:_MOST_LENGTHS])


def _said(one: object, other: object, gap: float | None) -> str:
    if gap is not None:
        return f"is off by {gap:.4g}"
    if isinstance(one, list) and isinstance(other, list):
        return f"has {len(one)} entries in place of {len(other)}"
    return "is another value"


def _gap(one: Any, other: Any) -> float | None:  # noqa: ANN401  any JSON value
    """How far two numbers or two arrays of numbers are apart; None of other things."""
    if not all(isinstance(value, int | float | np.ndarray) for value in (one, other)):
        return None
    found, wanted = np.asarray(one), np.asarray(other)
    if found.shape != wanted.shape or any(a.dtype.kind not in "iuf" for a in (found, wanted)):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(found.astype(np.float64) - wanted)
    finite = gaps[np.isfinite(gaps)]
    return float(finite.max()) if finite.size == gaps.size else None
