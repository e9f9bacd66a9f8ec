"""Unix sockets: TorchServe's `unix:` addresses, and the URLs that stand for them.

Such an address is written `http+unix://` and the socket's path, quoted, in place of a host.
A socket is only as open as the folder that it lies in, whatever its own mode is.
"""

import os
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "unix:"
"""What TorchServe's own setting begins with."""
SCHEME = "http+unix://"
LONGEST_PATH = 107  # bytes; sun_path of unix(7) holds 108, the last one is zero


def url(address: str) -> str:
    """The URL of TorchServe's `unix:/path`."""
    return SCHEME + quote(address.removeprefix(PREFIX), safe="")


def path_of(url: str) -> str | None:
    """The socket's path; None for an address of another kind."""
    if not url.startswith(SCHEME):
        return None
    return unquote(url.removeprefix(SCHEME).partition("/")[0])


def base_of(url: str) -> str:
    """The address without the path of a request: scheme and host, or socket."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def without_path(url: str) -> str:
    """The URL as it is asked for on a connection that goes to the socket already."""
    path = path_of(url)
    return (
        url if path is None else f"http://localhost{url[len(SCHEME) + len(quote(path, safe='')) :]}"
    )


def is_too_long(path: str) -> bool:
    """Whether no socket can have that path."""
    return len(os.fsencode(path)) > LONGEST_PATH


def remove(url: str) -> None:
    """Remove the socket of a server that has ended, if that is what the address names."""
    if path := path_of(url):
        Path(path).unlink(missing_ok=True)
