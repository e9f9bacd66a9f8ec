"""Ways to tell where a request ends: headers before a body, and the body as it is sent."""

from collections.abc import Callable, Mapping


def _chunks(body: bytes, size: bytes | None = None, end: bytes = b"0\r\n\r\n") -> bytes:
    return (b"%x" % len(body) if size is None else size) + b"\r\n" + body + b"\r\n" + end


CHUNKED = b"Transfer-Encoding: chunked"
Framing = Callable[[bytes], tuple[list[bytes], bytes]]
WHOLE: Mapping[str, Framing] = {
    "length": lambda body: ([b"Content-Length: %d" % len(body)] if body else [], body),
    "chunks": lambda body: ([CHUNKED], _chunks(body) if body else b"0\r\n\r\n"),
    "length 0": lambda _: ([b"Content-Length: 0"], b""),
    "nothing of the body": lambda _: ([], b""),
    "expects": lambda body: ([b"Content-Length: %d" % len(body), b"Expect: 100-continue"], body),
    "chunks and trailers": lambda body: (
        [CHUNKED],
        _chunks(body + b".", end=b"0\r\nX-A: b\r\n\r\n"),
    ),
}
"""Ways to tell a request's end that leave no doubt."""

LIES: Mapping[str, Framing] = {
    "no length": lambda body: ([], body),
    "length too short": lambda body: ([b"Content-Length: %d" % (len(body) // 2)], body),
    "length too long": lambda body: ([b"Content-Length: %d" % (len(body) + 9)], body),
    "length huge": lambda body: ([b"Content-Length: 99999999999"], body),
    "length endless": lambda body: ([b"Content-Length: " + b"9" * 40], body),
    "length below 0": lambda body: ([b"Content-Length: -1"], body),
    "length with +": lambda body: ([b"Content-Length: +%d" % len(body)], body),
    "length in hex": lambda body: ([b"Content-Length: 0x%x" % len(body)], body),
    "length in words": lambda body: ([b"Content-Length: all"], body),
    "length empty": lambda body: ([b"Content-Length:"], body),
    "length as a list": lambda body: ([b"Content-Length: %d, 3" % len(body)], body),
    "length before a space": lambda body: ([b"Content-Length : %d" % len(body)], body),
    "two lengths": lambda body: ([b"Content-Length: %d" % len(body), b"Content-Length: 3"], body),
    "length and chunks": lambda body: (
        [b"Content-Length: %d" % len(body), CHUNKED],
        _chunks(body or b"."),
    ),
    "chunks and length": lambda body: ([CHUNKED, b"Content-Length: 3"], _chunks(body or b".")),
    "chunk of no size": lambda body: ([CHUNKED], _chunks(body, b"size")),
    "chunk below 0": lambda body: ([CHUNKED], _chunks(body, b"-9")),
    "chunk huge": lambda body: ([CHUNKED], _chunks(body, b"ffffffffff")),
    "chunk endless": lambda body: ([CHUNKED], _chunks(body, b"f" * 100)),
    "chunk too short": lambda body: ([CHUNKED], _chunks(body, b"%x" % (len(body) // 2 + 1))),
    "chunk with a word": lambda body: ([CHUNKED], _chunks(body, b'%x;a="\n"' % len(body))),
    "chunks without end": lambda body: ([CHUNKED], _chunks(body, end=b"")),
    "chunks twice": lambda body: ([CHUNKED, CHUNKED], _chunks(body or b".")),
    "another encoding": lambda body: ([b"Transfer-Encoding: gzip"], body),
    "encodings": lambda body: ([b"Transfer-Encoding: gzip, chunked"], _chunks(body or b".")),
    "chunked misspelled": lambda body: (
        [b"Transfer-Encoding: xchunked", b"Content-Length: %d" % len(body)],
        body,
    ),
    "chunked after a tab": lambda body: ([b"Transfer-Encoding:\tchunked"], _chunks(body or b".")),
    "expects too much": lambda _: ([b"Content-Length: 99999999", b"Expect: 100-continue"], b""),
    "expects otherwise": lambda body: ([b"Content-Length: %d" % len(body), b"Expect: x"], body),
    "another request behind": lambda body: (
        [b"Content-Length: %d" % len(body)],
        body + b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    "another request within": lambda body: (
        [b"Content-Length: %d" % (len(body) + 3), CHUNKED],
        b"0\r\n\r\nDELETE /models/lin HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
}
"""Ways that a server may refuse, wait behind, or read otherwise than another server."""

FRAMINGS: Mapping[str, Framing] = {**WHOLE, **LIES}
