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
from functools import cache
from pathlib import Path

from marship.serving.message import Reply

_FOLDER = Path(__file__).parent
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


@cache
def files() -> Mapping[bytes, Reply]:
    """Each file as a response, by its path; `/` is the page itself."""
    found = {
        f"/page/{path.name}".encode(): Reply(path.read_bytes(), _TYPES[path.suffix], 200, HEADERS)
        for path in sorted(_FOLDER.iterdir())
        if path.suffix in _TYPES
    }
    return {b"/": found.pop(b"/page/index.html"), **found}
