"""Unix sockets: the `unix:` addresses of a server's settings, and URLs for them.

Such a URL is `http+unix://` followed by the socket's path, percent-encoded, in place of a host.
Access to a socket is controlled by the permissions of its folder, whatever its own mode is.
"""

import os
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "unix:"
"""The prefix in a server's settings."""
SCHEME = "http+unix://"
LONGEST_PATH = 107  # bytes; sun_path of unix(7) has 108, the last of which is zero


def url(address: str) -> str:
    """The URL of `unix:/path`."""
    return SCHEME + quote(address.removeprefix(PREFIX), safe="")


def path_of(url: str) -> str | None:
    """The socket's path; None for other URLs."""
    if not url.startswith(SCHEME):
        return None
    return unquote(url.removeprefix(SCHEME).partition("/")[0])


def is_visible(url: str) -> bool:
    """Whether a URL's socket is in this process's file system; true of other URLs."""
    path = path_of(url)
    return path is None or os.path.exists(path)  # noqa: PTH110  pathlib raises where none may look


def base_of(url: str) -> str:
    """The URL without the path of a request: scheme and host, or socket."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def without_path(url: str) -> str:
    """The URL to send on a connection to the socket."""
    path = path_of(url)
    return (
        url if path is None else f"http://localhost{url[len(SCHEME) + len(quote(path, safe='')) :]}"
    )


def is_too_long(path: str) -> bool:
    """Whether the path is too long for a unix socket."""
    return len(os.fsencode(path)) > LONGEST_PATH


def remove(url: str) -> None:
    """Remove the socket of a server that has stopped, if the URL is one of a unix socket."""
    if path := path_of(url):
        Path(path).unlink(missing_ok=True)
