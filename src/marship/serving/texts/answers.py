"""What a model says of one text, in the form of transformers' pipelines (transformers 5.23).

Of text-classification the best label, or the best ones as a list where `top_k` asks for it:

    {"label": "POSITIVE", "score": 0.98}

Of token-classification each token that belongs to something:

    [{"entity": "B-PER", "score": 0.99, "index": 4, "word": "Wolf", "start": 11, "end": 15}]

Of feature-extraction the states of all tokens, in a list with one entry, `[[[0.1, ...], ...]]`; or
one vector, `[0.1, ...]`, where they are pooled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from marship.contract import Array
from marship.errors import ModelError
from marship.serving.model.scores import SCORES, scored
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import Schema

if TYPE_CHECKING:
    from marship.serving.texts import TokenizedText

Answer = Any
Answerer = Callable[[Array, "TokenizedText", int | None], Answer]
CLASSIFY, TAG, EXTRACT = "text-classification", "token-classification", "feature-extraction"
OUTSIDE = "O"
"""The label of a token that belongs to nothing; pipelines leave it out."""
POOLINGS: dict[str, Callable[[Array], Array]] = {
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "max": lambda states: states.max(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / np.sqrt(np.float32(len(states))),
}
"""By their names in sentence-transformers' Pooling; several are joined. Rows are unpadded here."""


def answerer(about: Mapping[str, Any]) -> Answerer:
    """The function that answers for the task of text.json.

    Raises:
        KeyError: A setting is missing.
        ValueError: One has an unknown value.
    """
    task = about["task"]
    if task == EXTRACT:
        pooling, normalize = about["pooling"], about["normalize"]
        if unknown := set(pooling) - set(POOLINGS):
            raise ValueError(f"pooling {', '.join(sorted(unknown))}")
        return lambda states, _, __: embedded(finite(states), pooling, is_normalized=normalize)
    labels = [str(label) for label in about["labels"]]
    kind = about.get("scores", "softmax") if task == TAG else about["scores"]
    if task not in {CLASSIFY, TAG} or kind not in SCORES:
        raise ValueError(f"task {task}, scores {kind}")
    if task == TAG:
        return lambda logits, tokens, _: tagged(scored(finite(logits), kind), tokens, labels)
    return lambda logits, _, top_k: classified(scored(finite(logits), kind), labels, top_k)


def schema(about: Mapping[str, Any]) -> Schema:
    """The JSON Schema of what is said of one text."""
    if about["task"] == EXTRACT:
        numbers = schemas.array(schemas.NUMBER)
        return numbers if about["pooling"] else schemas.array(schemas.array(numbers), 1, 1)
    label = {"enum": [str(label) for label in about["labels"]]}
    if about["task"] == CLASSIFY:
        best = schemas.record(label=label, score=schemas.NUMBER)
        return {"anyOf": [best, schemas.array(best)]}
    place = {"type": "integer", "minimum": 0}
    token = schemas.record(
        entity=label, score=schemas.NUMBER, index=place, word=schemas.TEXT, start=place, end=place
    )
    return schemas.array(token)


def finite(values: Array) -> Array:
    """The outputs as float32.

    Raises:
        ModelError: They hold NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise ModelError("the model must give finite numbers, got NaN or infinity.")
    return values.astype(np.float32, copy=False)


def classified(scores: Array, labels: Sequence[str], top_k: int | None) -> Answer:
    """The best label, or the best ones, the first of equal ones first."""
    order = np.argsort(-scores, kind="stable")[: top_k or 1]
    rows = [{"label": labels[i], "score": scores[i]} for i in order]
    return rows[0] if top_k is None else rows


def tagged(scores: Array, tokens: "TokenizedText", labels: Sequence[str]) -> list[Answer]:
    """Each token with its label, but those that are special or belong to nothing."""
    best = scores.argmax(-1)
    rows = []
    for index, place in enumerate(best):
        if tokens.is_special[index] or labels[place] == OUTSIDE:
            continue
        start, end = tokens.offsets[index]
        word = tokens.text.text[start:end] if tokens.is_unknown[index] else tokens.words[index]
        rows.append(
            {
                "entity": labels[place],
                "score": scores[index, place],
                "index": index,
                "word": word,
                "start": start,
                "end": end,
            }
        )
    return rows


def embedded(states: Array, pooling: Sequence[str], *, is_normalized: bool) -> Answer:
    """The states of all tokens as pipelines give them, or one vector for the text."""
    if not pooling:
        return states[None]
    vector = np.concatenate([POOLINGS[name](states) for name in pooling])
    if is_normalized:  # torch.nn.functional.normalize's least length
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return np.ascontiguousarray(vector, np.float32)
