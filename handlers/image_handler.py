"""Tells what is in a picture.

The body is a picture: JPEG, PNG, WebP, GIF or BMP, found from its bytes whatever Content-Type
says. Or it is a multipart form with up to 32 pictures, a part for each, and perhaps a field `k`,
the number of labels requested. (TorchServe passes no query on to a worker.)

The response for one picture has the best labels with their probabilities, the labels to tag it
with, and the picture's size as it is shown:

    {"label": "tabby", "probability": 0.93, "top": [{"label": "tabby", "probability": 0.93}],
     "tags": ["tabby"], "width": 640, "height": 480, "format": "jpeg"}

Several are answered each by itself, whatever is wrong with the others:

    {"pictures": [{"name": "a", "label": ...}, {"name": "b", "code": ..., "message": ...}]}

`handler:` in model-config.yaml may set `k` and `tag_threshold`, the probability a tag must have.

The model reads pixels as they are decoded, uint8, or, where picture.json has a `processor`, what
that makes of them (`marship.serving.pictures.processor`); and it gives probabilities, or what
`scores` makes some of (`marship.serving.model.scores`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from marship.contract import Array, Arrays
from marship.errors import (
    InvalidInputError,
    LoadError,
    MalformedError,
    MarshipError,
    ModelError,
    RequestError,
    TooLargeError,
    UnsupportedMediaError,
    bare,
)
from marship.serving import pictures
from marship.serving.handler import OnnxHandler, Reply, Request, hidden
from marship.serving.message import JSON_TYPE
from marship.serving.model.batch import Parts
from marship.serving.model.scores import SCORES, scored
from marship.serving.openapi import media, schemas
from marship.serving.openapi.interface import PICTURE, BodyForm, Interface
from marship.serving.pictures import Picture
from marship.serving.pictures.processor import Processor

PICTURE_FILE = "picture.json"
DEFAULT_K = 5
MOST_PICTURES = 32
DECODING_SHARE = 0.5
"""Of the time limit: files can be made that take a hundred times as long as photographs."""
_LONG_SIDES = 2
"""Pictures with longer sides, in shorter ones, are cut before the model: it cuts them, too."""
SETTINGS = ("k", "tag_threshold")
Facts = dict[str, object]


class ImageHandler(OnnxHandler):
    """Pictures in, labels with probabilities out."""

    def prepare(self) -> None:
        """Read the archive's picture.json and the `handler:` settings of model-config.yaml."""
        try:
            about = orjson.loads((self.folder / PICTURE_FILE).read_bytes())
            self._labels = [str(label) for label in about["labels"]]
            self._processor = Processor.of(about["processor"]) if "processor" in about else None
            self._shortest = None  # a processor resizes all pixels
            if self._processor is None:
                self._shortest = pictures.shortest_side(about["side"], about["crop"])
            self._scores = SCORES[SCORES.index(about.get("scores", "none"))]
            threshold = about["tag_threshold"]
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise LoadError(
                f"{PICTURE_FILE} must give labels, side, crop and tag_threshold, or a processor in "
                f"place of side and crop, got {error!r}. Package again."
            ) from error
        self._check_model()
        settings = self.config.get("handler") or {}
        self._k = _k_setting(settings)
        self._threshold = _share(settings.get("tag_threshold", threshold))
        self._decoding_s = DECODING_SHARE * (self.timeout_s or math.inf)
        self._is_joined = self.joins()

    def _check_model(self) -> None:
        (taken, *others), given = self.contract.inputs, self.contract.outputs[0]
        form = (taken.dtype, len(taken.shape), taken.shape[3:])
        wanted, needed = "uint8[batch, height, width, 3]", ("uint8", 4, (3,))
        if self._processor is not None:
            wanted, needed = "float32[batch, 3, height, width]", ("float32", 4, taken.shape[3:])
        if others or form != needed:
            raise LoadError(
                f"the model must take {wanted} and nothing else, got "
                f"{', '.join(map(str, self.contract.inputs))}."
            )
        if given.shape[1:] != (len(self._labels),):
            raise LoadError(
                f"the model must give a probability for each of the {len(self._labels)} labels in "
                f"{PICTURE_FILE}, got {given}."
            )

    def joins(self) -> bool:
        """Whether pictures share a call: on a CPU that is no faster, and takes 340 MB for 32."""
        return self.session.settings.providers != ("cpu",)

    def advice(self) -> object:
        """A request of the right form."""
        return (
            f"a picture as the body, {pictures.FORMATS}; or a multipart form with up to "
            f"{MOST_PICTURES} of them, a part for each; its field k is the number of labels"
        )

    def interface(self) -> Interface:
        """A picture or a form of them; labels with probabilities."""
        label = {"enum": self._labels}
        tag = schemas.record(label=label, probability=schemas.share("of this label"))
        one = schemas.record(
            **tag["properties"],
            top=schemas.array(tag, 1),
            tags=schemas.array(label),
            **media.PICTURE_FACTS,
        )
        named = schemas.record({**one["properties"], **media.FAULT}, name=schemas.TEXT)
        several = schemas.record(pictures=schemas.array(named, 2, MOST_PICTURES))
        count = {"type": "integer", "minimum": 1, "description": "How many labels to give."}
        form = {"type": "object", "minProperties": 1}
        return Interface(
            PICTURE,
            (
                *media.PICTURES,
                BodyForm("multipart/form-data", form, "pictures, a part each, and perhaps k"),
            ),
            (BodyForm(JSON_TYPE, one, "one picture"), BodyForm(JSON_TYPE, several, "several")),
            parameters=({"name": "k", "in": "query", "schema": count},),
            about=str(self.advice()),
        )

    def reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        """Each request's response, before the host's time limit ends the worker."""
        self._latest_s = time.monotonic() + self._decoding_s
        return super().reply(requests)

    def decode(self, request: Request) -> tuple[Parts, tuple[int, list[Facts]]]:
        """Each picture's pixels, or what is wrong with it; k, and what is known of the pictures.

        Raises:
            RequestError: There is no picture, there are too many, or k is no number.
        """
        named: dict[str, Any] = {request.name: request.body, **request.fields}
        k = self._requested_count(named)
        if not named:
            raise MalformedError("a request must hold a picture, got none.")
        if len(named) > MOST_PICTURES:
            raise TooLargeError(
                f"a request must hold at most {MOST_PICTURES} pictures, got {len(named)}. "
                "Send several requests."
            )
        parts: Parts = []
        facts: list[Facts] = [{"name": name} for name in named] if len(named) > 1 else [{}]
        for body, known in zip(named.values(), facts, strict=True):
            try:
                picture = self._read(body)
            except RequestError as error:
                parts.append(bare(error))
                continue
            except Exception:  # a fault in decoding one picture must not reach its neighbours
                parts.append(hidden("decode"))
                continue
            known.update(picture.facts)
            parts.append({self.contract.inputs[0].name: picture.pixels[None]})
        return parts, (k, facts)

    def _prepared(self, pixels: Array) -> Array:
        """As the processor makes it; or without what the model does not read, if that is much."""
        if self._processor is not None:
            return self._processor(pixels)
        shorter, longer = sorted(pixels.shape[:2])
        is_copied = longer > _LONG_SIDES * shorter or self._is_joined  # if a call has several
        return _middle(pixels) if is_copied else pixels

    def _read(self, body: object) -> Picture:
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise UnsupportedMediaError(f"a picture must be sent as it is, {pictures.FORMATS}.")
        if time.monotonic() > self._latest_s:
            raise TooLargeError(
                f"the pictures of a batch must be decoded within {self._decoding_s:g} s, and those "
                "before took longer. Send smaller ones, or fewer at once."
            )
        picture = pictures.decode(bytes(body), self._shortest)
        return replace(picture, pixels=self._prepared(picture.pixels))

    def _requested_count(self, named: dict[str, Any]) -> int:
        """The requested k, removed from the named parts of a request."""
        if "k#2" in named:
            raise InvalidInputError("k must be sent once.")
        value = named.pop("k", self._k)
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        number = text.lstrip("0")[:9] if text.isascii() and text.isdigit() else ""
        if not number:
            raise InvalidInputError(f"k must be a whole number from 1, got {text[:20]!r}.")
        return min(int(number), len(self._labels))

    def encode(self, outputs: Parts, state: tuple[int, list[Facts]]) -> Reply:
        """The result for one picture, or a list with the result or error of each."""
        k, facts = state
        answers = [self._labelled(output, k) for output in outputs]
        if len(answers) > 1:
            rows = zip(facts, answers, strict=True)
            return Reply(
                orjson.dumps({"pictures": [known | _facts_or_raise(row) for known, row in rows]})
            )
        (answer,) = answers
        if isinstance(answer, MarshipError):
            raise answer
        return Reply(orjson.dumps(answer | facts[0]))

    def _labelled(self, output: Arrays | MarshipError, k: int) -> Facts | MarshipError:
        """What the model sees in one picture, or what is wrong with the picture or the model."""
        if isinstance(output, MarshipError):
            return output
        try:
            return self._seen(output, k)
        except ModelError as error:
            return error
        except Exception:  # a fault in reading one picture's output must not reach its neighbours
            return hidden("encode")

    def _seen(self, output: Arrays, k: int) -> Facts:
        probabilities = output[self.contract.outputs[0].name][0]
        if not np.isfinite(probabilities).all():
            raise ModelError("the model must give finite probabilities, got NaN or infinity.")
        probabilities = scored(probabilities, self._scores)
        order = np.argsort(-probabilities, kind="stable")
        top = [
            {"label": self._labels[i], "probability": round(float(probabilities[i]), 6)}
            for i in order[:k]
        ]
        tagged = order[: np.count_nonzero(probabilities >= self._threshold)]
        return {**top[0], "top": top, "tags": [self._labels[i] for i in tagged]}


def _facts_or_raise(answer: Facts | MarshipError) -> Facts:
    """One result among several, or the error in its place."""
    if not isinstance(answer, MarshipError):
        return answer
    error = hidden("run", answer) if isinstance(answer, ModelError) else answer
    return {"code": error.code, "message": str(error)}


def _middle(pixels: Array) -> Array:
    """A square, or one pixel longer, without the same at both ends.

    The model reads the middle square, so its output is the same, and a panorama takes no more
    memory than a square.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, height - width) // 2, max(0, width - height) // 2
    return np.ascontiguousarray(pixels[top : height - top, left : width - left])


def _k_setting(settings: object) -> int:
    if not isinstance(settings, dict) or not set(settings) <= set(SETTINGS):
        raise LoadError(
            f"handler in model-config.yaml must set nothing but {' and '.join(SETTINGS)}, got "
            f"{settings!r}."
        )
    k = settings.get("k", DEFAULT_K)
    if type(k) is not int or k < 1:
        raise LoadError(f"handler.k in model-config.yaml must be a whole number from 1, got {k!r}.")
    return k


def _share(threshold: object) -> float:
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise LoadError(f"tag_threshold must be a number from 0 to 1, got {threshold!r}.")
    return float(threshold)
