"""Recommends items from a user's behaviour.

A request holds one user's events, oldest first; only `history` is required:

    {"history": [50, 172, 1], "ratings": [5, 4, 3], "times": [874965758, 874965759, 874965760],
     "k": 10, "include_seen": false}

The response lists the k best items, best first, with the model's score (higher is better):

    {"items": [{"item": 181, "title": "Return of the Jedi (1983)", "score": 7.31}]}

With `"explain": true` each item says which two events of the history speak most for it. Each
event is left out once, all in one batch, and `importance` is by how much the item's logarithmic
probability (of the softmax over the items that can be recommended) is then lower:

    "because": [{"event": 0, "item": 50, "title": "Star Wars (1977)", "importance": 0.41}]

Events that lower it are not listed, so there may be fewer than two; of a history of one event
there is nothing to leave out, and none is listed.
"""

from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays
from marship.errors import InvalidInputError, LoadError, MarshipError
from marship.serving.formats import codec
from marship.serving.handler import OnnxHandler, Reply, Request
from marship.serving.message import JSON_TYPE
from marship.serving.model.batch import Parts
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import HISTORY, BodyForm, Interface

ITEMS_FILE = "items.json"
DEFAULT_K = 10
MOST_NAMED = 5000
"""Catalogues up to this size are listed in the OpenAPI document, with titles."""
KEYS = ("history", "ratings", "times", "k", "include_seen", "explain")
REASONS, MOST_TRIED = 2, 100
"""Events named for each item; latest events that are left out, of any history."""


Asked = tuple[Array, Array, int, bool]
"""The history's items, oldest first; items not to recommend; k; whether to explain."""


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
                    "explain": {
                        "type": "boolean",
                        "default": False,
                        "description": "Say which events of the history speak for each item.",
                    },
                },
                history={**schemas.array(item, 1), "description": "Items, oldest first."},
            ),
            "additionalProperties": False,
        }
        named = {"item": {"type": "integer"}, "title": schemas.TEXT}
        reason = schemas.record(event={"type": "integer"}, **named, importance=schemas.NUMBER)
        row = schemas.record(
            {"because": {**schemas.array(reason), "description": "Only with explain."}},
            **named,
            score=schemas.NUMBER,
        )
        example = {"history": list(self._titles)[:3], "k": DEFAULT_K}
        return Interface(
            HISTORY,
            (BodyForm(JSON_TYPE, request, "one user's history", {"history": example}),),
            (BodyForm(JSON_TYPE, schemas.record(items=schemas.array(row)), "best first"),),
        )

    def decode(self, request: Request) -> tuple[Arrays | Parts, Asked]:
        """One user's history as tensors of one row; with `explain`, also without each event.

        Raises:
            RequestError: The body is not what `advice` shows, or names unknown items.
        """
        value = codec.read_json(request.body, request.content_type)
        if not isinstance(value, dict) or "history" not in value or set(value) - set(KEYS):
            raise InvalidInputError(
                f"the body must be a JSON object with history and no keys but {', '.join(KEYS)}."
            )
        history = self._history(value["history"])
        events, k = len(history), self._k(value.get("k", DEFAULT_K))
        left_out = np.empty(0, np.int64) if _flag("include_seen", value) else np.unique(history)
        columns = {
            "items": history,
            "ratings": _numbers("ratings", value.get("ratings"), events),
            "times": _numbers("times", value.get("times"), events),
        }
        whole = self._row(columns)
        explains = _flag("explain", value)
        if not explains or events == 1:  # the model needs an event
            return whole, (history, left_out, k, explains)
        read = len(next(iter(whole.values()))[0])  # those before have no part in it
        latest = {name: column[-read - 1 :] for name, column in columns.items()}
        others = (
            {name: np.delete(column, event) for name, column in latest.items()}
            for event in range(-min(read, MOST_TRIED), 0)
        )
        return [whole, *map(self._row, others)], (history, left_out, k, explains)

    def encode(self, outputs: Arrays | Parts, asked: Asked) -> Reply:
        """The k best items by score, those left out excepted."""
        history, left_out, most, explains = asked
        parts = outputs if isinstance(outputs, list) else [outputs]
        scores = np.stack([_scores(part, left_out) for part in parts])
        best = _best(scores[0], most)
        items: list[dict[str, Any]] = [
            {**self._named(item), "score": round(float(scores[0, item]), 4)} for item in best
        ]
        if explains:
            importance = _importance(scores, best)
            for row, column in zip(items, importance.T, strict=True):
                row["because"] = self._reasons(column, history)
        return Reply(orjson.dumps({"items": items}))

    def _row(self, columns: Arrays) -> Arrays:
        """The inputs of the latest events that the model reads, as one row."""
        events = len(columns["items"])
        longest = self.contract.bounds.get("length", (1, None))[1] or events
        return {
            spec.name: columns[spec.name][-longest:].astype(spec.dtype)[None]
            for spec in self.contract.inputs
        }

    def _named(self, item: int) -> dict[str, Any]:
        return {"item": int(item), "title": self._titles[int(item)]}

    def _reasons(self, importance: Array, history: Array) -> list[dict[str, Any]]:
        """The events that speak most for an item, from the importance of the latest ones."""
        first = len(history) - len(importance)
        most = np.argsort(-importance, kind="stable")[:REASONS]
        return [
            {
                "event": first + int(place),
                **self._named(history[first + place]),
                "importance": round(float(importance[place]), 4),
            }
            for place in most
            if importance[place] > 0
        ]

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


def _scores(part: Arrays | MarshipError, left_out: Array) -> Array:
    """Scores by item, float64; those that cannot be recommended have minus infinity.

    So have scores that are not finite, as of a model that overflows: JSON has no number for them.
    """
    if isinstance(part, MarshipError):
        raise part
    scores: Array = part["scores"][0].astype(np.float64)
    scores[~np.isfinite(scores)] = -np.inf
    scores[0] = -np.inf  # index 0 is padding, no item
    scores[left_out] = -np.inf
    return scores


def _best(scores: Array, most: int) -> Array:
    """The places of the k highest finite scores, highest first."""
    k = min(most, int(np.isfinite(scores).sum()))
    best: Array = np.argpartition(-scores, k - 1)[:k] if k else np.empty(0, np.int64)
    return best[np.argsort(-scores[best], kind="stable")]


def _importance(scores: Array, items: Array) -> Array:
    """How much lower each item's logarithmic probability is without each event.

    Args:
        scores: float64 (1 + events, items): with the whole history, then without each event.
        items: Those to explain.

    Returns:
        float64 (events, len(items)).
    """
    if not len(items):
        return np.empty((len(scores) - 1, 0))
    with np.errstate(invalid="ignore"):  # where a row has no finite score
        shifted = scores - scores.max(1, keepdims=True)
        logs: Array = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[:, items]
        lower: Array = logs[0] - logs[1:]
    return np.where(np.isfinite(lower), lower, 0)


def _flag(name: str, value: dict[str, Any]) -> bool:
    flag = value.get(name, False)
    if not isinstance(flag, bool):
        raise InvalidInputError(f"{name} must be true or false, got {_short(flag)}.")
    return flag


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
