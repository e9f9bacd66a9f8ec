"""Hooks of schemathesis: bodies that are no JSON, and rules that JSON Schema has no words for."""

import io
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies

from photos import colour
from whistles import said

RECORDING, PICTURE = said("abc"), colour("red")


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((1, 3), np.float32))
    return stream.getvalue()


BODIES = {
    **{f"image/{kind}": colour("red", kind=kind.upper()) for kind in ("jpeg", "png", "gif", "bmp")},
    "image/webp": colour("blue", kind="WEBP"),
    **{f"audio/{kind}": RECORDING for kind in ("wav", "flac", "ogg", "mpeg")},
    "application/x-npy": _npy(),
    "application/octet-stream": b"[[1, 2, 3]]",
    "text/plain": b"a good film",
}
for _type, _body in BODIES.items():
    schemathesis.openapi.media_type(_type, strategies.just(_body))


@schemathesis.deserializer("application/jsonl", "application/octet-stream", "application/x-npy")
def deserialized(_context: Any, _response: Any) -> Any:
    """Nothing is said of bytes."""
    return ""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make requests that keep to their schema right where it cannot say what is."""
    del context, kwargs
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.media_type == "multipart/form-data":
        sent = PICTURE if "colours" in case.path else RECORDING
        case.body = {"k": 1, "picture": sent} if sent is PICTURE else {"a": sent}
    elif isinstance(case.body, dict) and isinstance(case.body.get("inputs"), list):
        for entry in case.body["inputs"]:  # data fills a shape
            rows = max(1, len(entry["data"]) // 3)
            entry |= {"shape": [rows, 3], "data": (entry["data"] + [0, 0, 0])[: 3 * rows]}
    elif isinstance(case.body, dict) and "history" in case.body:  # lists are as long as it
        count = len(case.body["history"])
        longer = {
            n: (case.body[n] + [0] * count)[:count] for n in ("ratings", "times") if n in case.body
        }
        case.body = _counted({**case.body, **longer})
    elif "words" in case.path and case.media_type == "application/json":
        case.body = _counted(_worded(case.body))


def _counted(body: Any) -> Any:
    """How many are wanted as a JSON integer: 3.0 is one for JSON Schema, and 1e30 a large one."""
    names = {"k", "top_k"} & (body.keys() if isinstance(body, dict) else set())
    return {**body, **{name: min(int(body[name]), 1000) for name in names}} if names else body


def _worded(value: Any) -> Any:
    """The texts as some of few words, which a text has one of at least; pairs as long as texts."""
    if isinstance(value, str):
        return "a good film"
    if isinstance(value, list):
        return [_worded(each) for each in value]
    if isinstance(value, dict):
        found = {
            k: _worded(v) if k in ("text", "text_pair", "instances") else v
            for k, v in value.items()
        }
        if isinstance(found.get("text_pair"), list):
            found["text_pair"] = ["bad"] * len(found["text"])
        return found
    return value
