"""Requests changed at random, as bytes on the wire; a seed and an index make one again.

What a polite client cannot send is sent as well: lengths that lie, chunks that are none, names
with zeros in them. Odd texts hold no word that the search for leaks looks for, since servers say
back what they were sent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import damage
from framings import FRAMINGS, LIES, WHOLE

Header = tuple[bytes, bytes]

ODD = (
    b"",
    b"0",
    b"-1",
    b"None",
    b"true",
    b"9" * 30,
    b"a" * 300,
    b"a\0b",
    b"\xff\xfe",
    "Ж€😀".encode(),
    b"../../etc/passwd",
    b"%00",
    b"%0d%0aX-In: 1",
    b"%zz",
    b"%",
    b"${jndi:ldap://127.0.0.1:1/a}",
    b"$model",
    b"{{7*7}}",
    b"' OR 1=1 --",
    b"<script>",
    b"\x1b[31m",
    b"a\tb",
    b"a\rb",
    b"a\n b",
    b'"',
    b";",
    b",,,",
    b"\\",
    b"http://127.0.0.1:1/",
    b"file:///etc/passwd",
)
NAMES = (
    b"Content-Type",
    b"Inference-Header-Content-Length",
    b"X-Request-Id",
    b"Host",
    b"Accept",
    b"Accept-Encoding",
    b"Connection",
    b"Upgrade",
    b"Content-Encoding",
    b"Cookie",
    b"Expect",
    b"Range",
    b"If-Match",
    b"Forwarded",
    b"X-Forwarded-For",
    b"X-Original-URL",
    b"X-HTTP-Method-Override",
    b"explain",
    b"describe",
    b"url_path",
    b"ts_request_sequence_id",
    b"ts_request_sequence_start",
    b"Te",
    b"Trailer",
    b"Origin",
    b"X-Accel-Redirect",
)
METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT")
ODD_METHODS = (b"post", b"PROPFIND", b"P" * 200, b"P\xffST", b"", b"GET\t", b"\0", b"DELETE/models")
SLASHES = (b"//", b"/./", b"/x/../", b"%2f", b"\\", b"/%2e%2e/")
ENDS = (b"/", b"//", b"/1", b"/9", b"/../lin", b"/1/a/b", b"/set-default")
BARE = (b"*", b"/", b"//", b"?", b"#", b"", b"/..", b"/%", b":", b"127.0.0.1:1")
VERSIONS = (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/x", b"http/1.1", b"ICY", b"")
TYPES = (
    b"application/json",
    b"application/x-npy",
    b"application/octet-stream",
    b"application/x-www-form-urlencoded",
    b"application/x-www-form-urlencoded; charset=none",
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b"multipart/form-data; boundary=other",
    b"multipart/form-data; boundary=marship; charset=none",
    b'multipart/form-data; boundary="',
    b"multipart/form-data; boundary",
    b"multipart/form-data; boundary=marship; boundary=other",
    b"multipart/mixed; boundary=marship",
    b"multipart/",
    b"image/png",
    b"text/plain; charset=none",
)
VALUES = (
    b"NaN",
    b"1e999",
    b"-0.0",
    b"1e39",
    b"null",
    b"true",
    b'"1"',
    b"[]",
    b"{}",
    b"9" * 400,
    b"[" * 2000,
    b"[" * 500 + b"]" * 500,
    b'{"a":' * 300,
    b'"\\ud800"',
    b"1,2,3,4",
    b"[[1,2,3]],",
)
PARTS = (
    (b'name="', b'nom="'),
    (b"Content-Disposition", b"Content-Position"),
    (b"form-data; name", b"attachment; name"),
    (b"filename=", b"filename*="),
    (b"filename=", b"filename*=none'x'%zz"),
    (b'name="', b'name="\xff\0'),
    (b'name="data"', b'name=""'),
    (b"Content-Type: ", b"Content-Type: text/plain; charset=none\r\nX: "),
    (b"Content-Type: ", b"Content-Transfer-Encoding: none\r\nContent-Type: "),
    (b"Content-Type: ", b"Content-Length: 99999999999\r\nContent-Type: "),
    (b"Content-Type: ", b"Content-Type: multipart/mixed; boundary=inner\r\nX: "),
    (b"\r\n\r\n", b"\r\n"),
    (b"--marship--", b"--marship"),
    (b"--marship", b"--marshi"),
    (b"--marship", b"--marship\r\n\r\n--marship"),
    (b"\r\n", b"\n"),
)
NUMBER = re.compile(rb"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Request:
    """A request, and what is known of it.

    Attributes:
        door: Where it goes.
        target: Path and query.
        framing: How its end is told: a name of `FRAMINGS`.
        may_enter: Whether its token may be one that lets it in.
        is_sure: Whether it is whole, so that an answer must come.
        reads: Whether it must stay one that only reads, since its token may manage.
    """

    door: str
    method: bytes
    target: bytes
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    version: bytes = b"HTTP/1.1"
    framing: str = "length"
    line_end: bytes = b"\r\n"
    token: bytes | None = None
    may_enter: bool = False
    is_sure: bool = True
    reads: bool = False

    def wire(self) -> bytes:
        """Its bytes."""
        end = self.line_end
        told, body = FRAMINGS[self.framing](self.body)
        headers = list(self.headers)
        if self.token is not None:
            headers.append((b"Authorization", self.token))
        lines = [b" ".join((self.method, self.target, self.version))]
        lines += [name + b": " + value for name, value in headers]
        return end.join([*lines, *told, b"", body])


@dataclass(frozen=True)
class Mutant:
    """A request's bytes, its place in the row, and what was changed."""

    index: int
    request: Request
    wire: bytes
    changes: tuple[str, ...]


class Maker:
    """Makes mutants of requests.

    Args:
        seeds: Real requests.
        wrong: By door, headers with tokens that let nobody in there.
        seed: Of everything that is random.
    """

    def __init__(
        self, seeds: Sequence[Request], wrong: Mapping[str, Sequence[bytes]], seed: int
    ) -> None:
        self.seeds, self.wrong, self.seed = seeds, wrong, seed
        self._bodies = [seed.body for seed in seeds if seed.body]

    def make(self, index: int) -> Mutant:
        """The mutant of this place; the same each time."""
        random = Random(f"{self.seed}:{index}")  # noqa: S311  chance, no secrets
        request = random.choice(self.seeds)
        changes = []
        for _ in range(random.choice((1, 1, 1, 2, 2, 3))):
            name = random.choice(READING if request.reads else CHANGES)
            request = getattr(self, f"_{name}")(request, random)
            changes.append(name)
        wire = request.wire()
        if not request.reads and random.random() < 0.06:
            wire = bytes(random.choice(damage.MUTATIONS)(bytearray(wire), random, [wire]))
            request = replace(request, is_sure=False)
            changes.append("wire")
        return Mutant(index, request, wire, tuple(changes))

    def _body(self, request: Request, random: Random) -> Request:
        data = bytearray(request.body or random.choice(self._bodies))
        for _ in range(random.choice((1, 1, 2))):
            if len(data) > 8:
                data = random.choice(damage.MUTATIONS)(data, random, self._bodies)
        return replace(request, body=bytes(data))

    def _value(self, request: Request, random: Random) -> Request:
        """Another value in the place of a number."""
        places = list(NUMBER.finditer(request.body[:400]))
        if not places:
            return self._body(request, random)
        start, stop = random.choice(places).span()
        body = request.body[:start] + random.choice(VALUES) + request.body[stop:]
        return replace(request, body=body)

    def _header(self, request: Request, random: Random) -> Request:
        """One more, one less, one twice, or one with another value."""
        headers = list(request.headers)
        place = random.randrange(len(headers) + 1)
        odd = random.choice(ODD)
        match random.randrange(5):
            case 0 if headers:
                headers.pop(place - 1)
            case 1 if headers:
                headers.insert(place, random.choice(headers))
            case 2 if headers:
                name, value = headers[place - 1]
                headers[place - 1] = (name, random.choice((odd, value + odd)))
            case 3:
                headers.insert(place, (random.choice((odd, b"X-" + odd)), odd))
            case _:
                headers.insert(place, (random.choice(NAMES), odd))
        return replace(request, headers=tuple(headers), is_sure=False)

    def _headers(self, request: Request, random: Random) -> Request:
        """Very long ones, or very many."""
        size = random.choice((500, 2900, 4000, 7000, 9000, 70_000))
        more: list[Header] = [(b"X-Long", b"a" * size)]
        if random.random() < 0.4:
            more = [(b"X-%d" % n, b"a") for n in range(size // 20)]
        return replace(request, headers=(*request.headers, *more), is_sure=False)

    def _type(self, request: Request, random: Random) -> Request:
        kept = tuple(h for h in request.headers if h[0] != b"Content-Type")
        kind = random.choice(TYPES)
        return replace(request, headers=(*kept, (b"Content-Type", kind)))

    def _form(self, request: Request, random: Random) -> Request:
        """Something in a form's parts; other bodies are put into one."""
        if b"--marship" not in request.body:
            request = self._type(request, random)
            body = b'--marship\r\nContent-Disposition: form-data; name="data"; filename="a"\r\n'
            body += b"Content-Type: text/plain\r\n\r\n" + request.body + b"\r\n--marship--\r\n"
            request = replace(request, body=body)
        old, new = random.choice(PARTS)
        count = random.choice((1, -1))
        return replace(request, body=request.body.replace(old, new, count))

    def _framing(self, request: Request, random: Random) -> Request:
        if random.random() < 0.4:
            return replace(request, framing=random.choice(list(WHOLE)))
        return replace(request, framing=random.choice(list(LIES)), is_sure=False)

    def _path(self, request: Request, random: Random) -> Request:
        path, _, query = request.target.partition(b"?")
        odd = random.choice(ODD)
        place = random.randrange(len(path) + 1)
        target = random.choice((
            path[:place] + odd + path[place:],
            path.replace(b"/", random.choice(SLASHES)),
            b"".join(b"%%%02x" % c for c in path),
            b"".join(b"%%25%02x" % c for c in path),
            path + random.choice(ENDS),
            b"/" + b"a/" * random.choice((10, 1000, 3000)),
            path + b"a" * random.choice((900, 2900, 4000, 8000)),
            b"http://127.0.0.1" + path,
            b"//127.0.0.1:1" + path,
            path[1:],
            random.choice(BARE),
            path + b"#" + odd,
            path + b";a=" + odd,
            random.choice(self.seeds).target,
        ))  # fmt: skip
        return replace(request, target=target + (b"?" + query if query else b""), is_sure=False)

    def _query(self, request: Request, random: Random) -> Request:
        odd = random.choice(ODD)
        name = random.choice((b"a", odd, b"name[]", b"limit", b"next_page_token", b"model_name"))
        join = b"&" if b"?" in request.target else b"?"
        more = join + name + b"=" + odd
        return replace(request, target=request.target + more * random.choice((1, 1, 2, 50)),
                       is_sure=False)  # fmt: skip

    def _method(self, request: Request, random: Random) -> Request:
        if random.random() < 0.7:
            return replace(request, method=random.choice(METHODS))
        return replace(request, method=random.choice(ODD_METHODS), is_sure=False)

    def _version(self, request: Request, random: Random) -> Request:
        return replace(request, version=random.choice(VERSIONS), is_sure=False)

    def _token(self, request: Request, random: Random) -> Request:
        token = random.choice((None, *self.wrong[request.door]))
        is_plain = token is None or (token.isascii() and token.decode().isprintable())
        return replace(request, token=token, may_enter=False, is_sure=request.is_sure and is_plain)

    def _line_end(self, request: Request, random: Random) -> Request:
        end = random.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n "))
        return replace(request, line_end=end, is_sure=False)


READING = ("header", "headers", "type", "query", "version", "framing", "path")
CHANGES = (
    *("body",) * 4,
    *("value",) * 3,
    *("header",) * 4,
    *("type", "form") * 3,
    *("path", "framing") * 4,
    *("method", "token", "query") * 2,
    *("headers", "version", "line_end"),
)
"""By their shares. A request with the management token changes neither method nor line ends."""
