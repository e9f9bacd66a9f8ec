"""Recommends items from a user's behaviour.

A request holds one user's events, oldest first; only `history` is required:

    {"history": [50, 172, 1], "ratings": [5, 4, 3], "times": [874965758, 874965759, 874965760],
     "k": 10, "include_seen": false}

The response lists the k best items, best first, with the model's score (higher is better):

    {"items": [{"item": 181, "title": "Return of the Jedi (1983)", "score": 7.31}]}
"""

from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays
from marship.errors import InvalidInputError, LoadError
from marship.serving.formats import codec
from marship.serving.handler import OnnxHandler, Reply, Request
from marship.serving.message import JSON_TYPE
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import HISTORY, BodyForm, Interface

ITEMS_FILE = "items.json"
DEFAULT_K = 10
MOST_NAMED = 5000
"""Catalogues up to this size are listed in the OpenAPI document, with titles."""
KEYS = ("history", "ratings", "times", "k", "include_seen")


class RecommendHandler(OnnxHandler):
    """Behaviour in, the k most preferred items out."""

    def prepare(self) -> None:
        """Read the items' titles: `{"<item>": {"title": ...}}` in the archive's items.json."""
        try:
            items = orjson.loads((self.folder / ITEMS_FILE).read_bytes())
            self._titles = {int(item): str(about["title"]) for item, about in items.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoadError(
                f"{ITEMS_FILE} must give a title for every item, got {error!r}. Package again."
            ) from error

    def advice(self) -> object:
        """A request of the right form."""
        return {"history": [50, 172, 1], "k": DEFAULT_K, "include_seen": False}

    def interface(self) -> Interface:
        """A history of items; the items to recommend."""
        item: dict[str, Any] = {"type": "integer", "minimum": 1}
        if len(self._titles) <= MOST_NAMED:
            item = {
                "type": "integer",
                "enum": list(self._titles),
                "x-enum-descriptions": list(self._titles.values()),
            }
        float32 = float(np.finfo(np.float32).max)
        numbers = schemas.array({"type": "number", "minimum": -float32, "maximum": float32})
        request = {
            **schemas.record(
                {
                    "ratings": {**numbers, "description": "As many as history has."},
                    "times": {**numbers, "description": "As many as history has, in seconds."},
                    "k": {"type": "integer", "minimum": 1, "default": DEFAULT_K},
                    "include_seen": {"type": "boolean", "default": False},
                },
                history={**schemas.array(item, 1), "description": "Items, oldest first."},
            ),
            "additionalProperties": False,
        }
        row = schemas.record(item={"type": "integer"}, title=schemas.TEXT, score=schemas.NUMBER)
        example = {"history": list(self._titles)[:3], "k": DEFAULT_K}
        return Interface(
            HISTORY,
            (BodyForm(JSON_TYPE, request, "one user's history", {"history": example}),),
            (BodyForm(JSON_TYPE, schemas.record(items=schemas.array(row)), "best first"),),
        )

    def decode(self, request: Request) -> tuple[Arrays, tuple[Array, int]]:
        """One user's history as tensors of one row; which items to leave out, and k.

        Raises:
            RequestError: The body is not what `advice` shows, or names unknown items.
        """
        value = codec.read_json(request.body, request.content_type)
        if not isinstance(value, dict) or "history" not in value or set(value) - set(KEYS):
            raise InvalidInputError(
                f"the body must be a JSON object with history and no keys but {', '.join(KEYS)}."
            )
        history = self._history(value["history"])
        left_out, k = _left_out(history, value), self._k(value.get("k", DEFAULT_K))
        columns = {
            "items": history,
            "ratings": _numbers("ratings", value.get("ratings"), len(history)),
            "times": _numbers("times", value.get("times"), len(history)),
        }
        longest = self.contract.bounds.get("length", (1, None))[1] or len(history)
        return {
            spec.name: columns[spec.name][-longest:].astype(spec.dtype)[None]
            for spec in self.contract.inputs
        }, (left_out, k)

    def encode(self, outputs: Arrays, state: tuple[Array, int]) -> Reply:
        """The k best items by score, those left out excepted."""
        left_out, most = state
        scores = outputs["scores"][0].astype(np.float64)
        scores[0] = -np.inf  # index 0 is padding, no item
        scores[left_out] = -np.inf
        k = min(most, int(np.isfinite(scores).sum()))
        best = np.argpartition(-scores, k - 1)[:k] if k else np.empty(0, np.int64)
        ranked = best[np.argsort(-scores[best], kind="stable")]
        items = [
            {"item": int(i), "title": self._titles[int(i)], "score": round(float(scores[i]), 4)}
            for i in ranked
        ]
        return Reply(orjson.dumps({"items": items}))

    def _history(self, value: object) -> Array:
        if not isinstance(value, list) or not value or not all(type(i) is int for i in value):
            raise InvalidInputError(
                f"history must be a list of item numbers with at least one, got {_short(value)}."
            )
        unknown = [item for item in value if item not in self._titles]
        if unknown:
            raise InvalidInputError(
                f"history must name items that the model knows, got {_short(unknown[0])} "
                f"({len(unknown)} unknown of {len(value)}). Leave them out."
            )
        return np.array(value, np.int64)

    def _k(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInputError(f"k must be a whole number from 1, got {_short(value)}.")
        return min(value, len(self._titles))


def _left_out(history: Array, value: dict[str, Any]) -> Array:
    include = value.get("include_seen", False)
    if not isinstance(include, bool):
        raise InvalidInputError(f"include_seen must be true or false, got {_short(include)}.")
    return np.empty(0, np.int64) if include else np.unique(history)


def _numbers(name: str, value: object, length: int) -> Array:
    """One number for each event; 0 (unknown to the model) where the request has none."""
    if value is None:
        return np.zeros(length)
    if not isinstance(value, list) or len(value) != length:
        raise InvalidInputError(
            f"{name} must be a list as long as history, {length}, got {_short(value)}."
        )
    if not all(type(number) in (int, float) for number in value):
        raise InvalidInputError(f"{name} must hold numbers, got other values.")
    return np.array(value, np.float64)


def _short(value: object, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
