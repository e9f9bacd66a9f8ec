"""Where a request begins and its head ends, and what it is about.

The acceptor and the workers both read it here: what they took for two targets would be passed
between them without an end.
"""

from marship.errors import MalformedError
from marship.serving.hosts.direct.limits import Limits, head_too_large

END = b"\r\n\r\n"
_MOST_EMPTY_LINES = 8


def target_of(head: bytes) -> bytes:
    """The target in a request line, where it stands in one; else nothing."""
    parts = head.partition(b"\r\n")[0].split(b" ")
    return without_host(parts[1]) if len(parts) > 1 else b""


def without_empty_lines(data: bytes) -> bytes:
    """What follows the few empty lines that may stand before a request (RFC 9112, 2.2)."""
    start = 0
    while data.startswith(b"\r\n", start) and start < 2 * _MOST_EMPTY_LINES:
        start += 2
    return data[start:] if start else data


def split(data: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """What was read without empty lines, and the head that it begins with.

    Args:
        data: What was read.
        limits: Of a request.

    Returns:
        The head is empty as long as it is not all there.

    Raises:
        MarshipError: It is too large, or no request.
    """
    data = without_empty_lines(data)
    if data.startswith(b"\r\n"):
        raise MalformedError(
            f"a request must follow, got more than {_MOST_EMPTY_LINES} empty lines."
        )
    stop = data.find(END) + len(END)
    is_whole = stop >= len(END)
    if not is_whole and data.count(b"\n") != data.count(b"\r\n"):
        raise MalformedError("lines must end with CR LF, got LF alone.")
    if (stop if is_whole else len(data)) > limits.head_bytes:
        raise head_too_large(limits)
    if is_whole and not target_of(data[:stop]):
        raise MalformedError("the first line must be METHOD TARGET HTTP/1.1, got another.")
    return data, (data[:stop] if is_whole else b"")


def without_host(target: bytes) -> bytes:
    """A target in absolute form as one in origin form (RFC 9112, 3.2.2)."""
    if target.startswith(b"/") or not target[:8].lower().startswith((b"http://", b"https://")):
        return target
    _, _, rest = target.partition(b"://")
    return rest[rest.find(b"/") :] if b"/" in rest else b"/"
