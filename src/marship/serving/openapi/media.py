"""Bodies that are pictures or recordings, and what is said of them."""

from collections.abc import Mapping

from marship.serving.openapi import schemas
from marship.serving.openapi.interface import BodyForm, Schema

PICTURES = tuple(
    BodyForm(f"image/{kind}", schemas.BINARY) for kind in ("jpeg", "png", "webp", "gif", "bmp")
)
RECORDINGS = tuple(
    BodyForm(f"audio/{kind}", schemas.BINARY) for kind in ("wav", "flac", "ogg", "mpeg")
)
PICTURE_FACTS: Mapping[str, Schema] = {
    "width": {"type": "integer", "minimum": 1},
    "height": {"type": "integer", "minimum": 1},
    "format": schemas.TEXT,
}
"""Fields of `Picture.facts`."""
FAULT: Mapping[str, Schema] = {"code": schemas.TEXT, "message": schemas.TEXT}
"""What stands in place of the response to one of several parts."""
