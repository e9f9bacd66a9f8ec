"""The page at the direct address, on which people try models.

index.html   nothing but a sign-in; all else comes by /openapi.json, which needs the token
page.css     its looks, light and dark
app.js       signing in, and which model is shown
server.js    requests to the server, with the token
dom.js       elements and their attributes
numbers.js   JSON whose integers keep all their digits
models.js    one model: its form, its responses, and the code of what was sent
forms.js     a form for each kind of model
results.js   what a model responded, and how long each step took
code.js      the last request in curl, Python and JavaScript
recorder.js  recordings from the microphone, as WAV
icon.svg     the icon of its tab

Kept by hand: no build, no libraries, nothing from elsewhere. Scripts make elements, never HTML.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from marship.errors import NotFoundError
from marship.serving.hosts.direct.limits import error_reply
from marship.serving.message import Reply

_FOLDER = Path(__file__).parent
SWAGGER_FOLDER = _FOLDER / "docs" / "swagger"
_LINK = b'<a href="/docs" hidden>Swagger UI</a>'
_MISSING = (
    "/docs must have the files of Swagger UI, got a marship that was built without them. Run "
    "`make swagger` in its sources, build and install it again, and restart the server."
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob:",  # a picture that was chosen, before it is sent
        "media-src blob:",  # a recording, likewise
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "microphone=(self), camera=(), geolocation=()"),
    ("cache-control", "no-cache"),
)
"""Of each file. The page runs no script but its own, and no other page may show it in a frame."""
_DOCS_HEADERS = (
    ("content-security-policy", _POLICY.replace("img-src 'self'", "img-src 'self' data:")),
    *HEADERS[1:],
)
"""Swagger UI's style sheet holds its arrows as data; scripts, styles and HTML are as strict."""


@cache
def files() -> Mapping[bytes, Reply]:
    """Each file as a response, by its path; `/` is the page itself, `/docs` Swagger UI."""
    page, docs = _served("/page", _FOLDER), _served("/docs", _FOLDER / "docs")
    shown = page.pop(b"/page/index.html")
    swagger = _served("/docs", SWAGGER_FOLDER)
    if not swagger:
        shown = replace(shown, body=shown.body.replace(_LINK, b""))
        return {b"/": shown, **page, b"/docs": error_reply(NotFoundError(_MISSING))}
    opened = replace(docs.pop(b"/docs/index.html"), headers=_DOCS_HEADERS)
    return {b"/": shown, **page, b"/docs": opened, **docs, **swagger}


def _served(path: str, folder: Path) -> dict[bytes, Reply]:
    """The files of a folder by their paths below one; none where there is no folder."""
    return {
        f"{path}/{file.name}".encode(): Reply(file.read_bytes(), _TYPES[file.suffix], 200, HEADERS)
        for file in sorted(folder.glob("*"))
        if file.suffix in _TYPES
    }
