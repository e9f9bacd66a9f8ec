"""serving.formats.forms: forms and content encodings, whichever host took the request."""

import gzip
import json
import os
import time
import zlib
from contextlib import suppress
from urllib.parse import unquote_plus, urlencode

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from requests import Request as HttpRequest

from marship.errors import (
    MalformedError,
    RequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from marship.serving.formats import forms
from marship.serving.message import Request

NAMES = st.text(
    st.characters(codec="ascii", exclude_characters='"\\', categories=["L", "N"]), min_size=1
)
VALUES = st.one_of(
    st.binary(max_size=99), st.sampled_from([b"\r\n--", b"--", b"\r\n", b"\r\n\r\n", b"-" * 40])
)
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}
LIMITS = {"most_fields": 100, "most_bytes": 1 << 20}


def form(fields: list[tuple[str, str, bytes]]) -> tuple[bytes, str]:
    """A form's body and content type, as requests writes them."""
    files = [(name, ("f", value, kind)) for name, kind, value in fields]
    sent = HttpRequest("POST", "http://x", files=files).prepare()
    assert isinstance(sent.body, bytes)
    return sent.body, sent.headers["content-type"]


@given(st.lists(st.tuples(NAMES, st.sampled_from(["image/png", "text/plain"]), VALUES), min_size=1))
def test_what_a_client_puts_in_a_form_comes_out(fields: list[tuple[str, str, bytes]]) -> None:
    """Names, types and bytes, in order, whatever the bytes look like."""
    body, kind = form(fields)
    assert forms.read(body, kind, 100) == (fields, len(fields))


@given(st.lists(st.tuples(NAMES, st.just("a/b"), VALUES), min_size=1, max_size=4), st.data())
def test_a_damaged_form_is_refused_and_nothing_else(
    fields: list[tuple[str, str, bytes]], data: st.DataObject
) -> None:
    """Cut, or with bytes exchanged: another form, or an error of the client's."""
    body, kind = form(fields)
    place = data.draw(st.integers(0, len(body)))
    mended = (
        body[:place]
        + data.draw(st.binary(max_size=3))
        + body[data.draw(st.integers(place, len(body))) :]
    )
    with suppress(RequestError):
        forms.request_of(mended, {"content-type": kind}, **LIMITS)


@pytest.mark.parametrize("kind", ["multipart/form-data", 'multipart/form-data; boundary=""'])
def test_a_form_without_a_boundary_is_refused(kind: str) -> None:
    """The header must name it."""
    with pytest.raises(MalformedError, match="must name the form's boundary"):
        forms.request_of(b"--x--", {"content-type": kind}, **LIMITS)


def test_a_form_with_too_many_fields_keeps_none() -> None:
    """They are counted, for the handler to refuse the request."""
    body, kind = form([("a", "a/b", b"")] * 9)
    request = forms.request_of(body, {"content-type": kind}, most_fields=8, most_bytes=1 << 20)
    assert (request.field_count, request.fields, request.name) == (9, {}, "body")


def test_the_body_of_a_form_is_the_field_that_is_named_so() -> None:
    """Else the first; others are fields, and one that comes again has a number."""
    parts = [("k", "", b"5"), ("k", "", b"6"), ("data", "image/png", b"png")]
    body, kind = form(parts)
    request = forms.request_of(body, {"content-type": kind}, **LIMITS)
    assert (request.name, request.content_type, request.body) == ("data", "image/png", b"png")
    assert request.fields == {"k": b"5", "k#2": b"6"}


def taken_apart(body: bytes) -> Request:
    """A body as TorchServe's frontend hands it on that takes it for a form, as Netty does."""
    pairs = [pair.partition(b"=") for pair in body.split(b"&") if b"=" in body]
    fields = [
        (unquote_plus(name.decode("utf-8", "replace")), "", unquote_plus(value.decode()).encode())
        for name, _, value in pairs
    ]
    request = Request(b"", headers={"content-type": forms.FIELDS_TYPE})
    forms.fill(request, fields, len(fields))
    return request


JSON_BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False))


@given(JSON_BODIES)
def test_json_that_came_as_a_form_is_told_the_header(text: str) -> None:
    """`curl -d` without a type: pieces of the text are names of fields, whatever they hold."""
    with pytest.raises(UnsupportedMediaError, match="Content-Type: application/json"):
        forms.check_form(taken_apart(text.encode()))


ASCII_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,9}", fullmatch=True)


@given(st.dictionaries(ASCII_NAMES, st.text(st.characters(codec="utf-8")), min_size=1))
def test_fields_that_a_client_encodes_are_those_of_a_form(fields: dict[str, str]) -> None:
    """As curl's --data-urlencode and HTML send them, and as a host takes them apart."""
    kind = {"content-type": f"{forms.FIELDS_TYPE}; charset=utf-8"}
    request = forms.request_of(urlencode(fields).encode(), kind, **LIMITS)
    found = {request.name: request.body, **request.fields}
    assert {name: value.decode() for name, value in found.items()} == fields
    assert request.field_count == len(fields)


@pytest.mark.parametrize("text", ["[[1, 2]]", '{"x": "a=b&c=d"}', "true", "1=2", "=a"])
def test_json_that_is_called_fields_stays_whole(text: str) -> None:
    """By `curl -d`, which calls every body so."""
    request = forms.request_of(text.encode(), {"content-type": forms.FIELDS_TYPE}, **LIMITS)
    assert (request.body, request.fields) == (text.encode(), {})


def test_a_form_of_too_many_fields_keeps_none() -> None:
    """It is not taken apart before they are counted."""
    request = forms.request_of(
        b"a=1&" * 200 + b"b=2", {"content-type": forms.FIELDS_TYPE}, **LIMITS
    )
    assert (request.fields, request.field_count) == ({}, 201)


@given(st.dictionaries(NAMES.filter(lambda name: name[0].isalpha()), VALUES, min_size=2))
def test_a_form_of_named_fields_is_one(fields: dict[str, bytes]) -> None:
    """A handler of one's own may read them."""
    body = urlencode(fields).encode()
    with suppress(UnicodeDecodeError):
        forms.check_form(taken_apart(body))


@given(st.binary(max_size=999), st.lists(st.sampled_from([*COMPRESS, "identity"]), max_size=3))
def test_encodings_are_undone_in_turn(plain: bytes, names: list[str]) -> None:
    """The last one in the header was applied last."""
    body = plain
    for name in names:
        body = COMPRESS.get(name, bytes)(body)
    assert forms.undo_encodings(body, ", ".join(names), 1 << 20) == plain


@given(
    st.sampled_from(sorted(COMPRESS)), st.binary(max_size=99), st.integers(0, 130),
    st.binary(max_size=2),
)  # fmt: skip
def test_a_damaged_encoding_is_refused(name: str, plain: bytes, place: int, more: bytes) -> None:
    """Cut, changed, or with more behind it."""
    whole = COMPRESS[name](plain)
    damaged = whole[:place] + more + whole[place + len(more) + 1 :]
    with suppress(MalformedError):
        forms.undo_encodings(damaged, name, 1 << 20)


@pytest.mark.parametrize("name", COMPRESS)
def test_half_of_an_encoded_body_is_refused(name: str) -> None:
    """It is never taken for a shorter one."""
    whole = COMPRESS[name](bytes(range(256)) * 9)
    with pytest.raises(MalformedError, match=f"must be {name}, got the beginning"):
        forms.undo_encodings(whole[: len(whole) // 2], name, 1 << 20)


@pytest.mark.parametrize("name", COMPRESS)
def test_a_body_that_grows_is_bounded(name: str) -> None:
    """100 MB of zeros in 100 KB are refused without being held."""
    bomb = COMPRESS[name](bytes(100_000_000))
    with pytest.raises(TooLargeError, match=f"at most 1,000,000 bytes without its {name}"):
        forms.undo_encodings(bomb, name, 1_000_000)
    right = COMPRESS[name](bytes(1_000_000))
    assert len(forms.undo_encodings(right, name, 1_000_000)) == 1_000_000


def test_a_window_of_more_than_8_mb_is_refused() -> None:
    """The sender chooses it, and the decoder would have to hold it (RFC 9659)."""
    plain = os.urandom(1000) * 20_000
    for bits, is_right in ((23, True), (24, False), (27, False)):
        options = {
            zstd.CompressionParameter.window_log: bits,
            zstd.CompressionParameter.enable_long_distance_matching: 1,
        }
        made = zstd.ZstdCompressor(options=options)
        body = made.compress(plain) + made.flush()
        if is_right:
            assert forms.undo_encodings(body, "zstd", 1 << 26) == plain
        else:
            with pytest.raises(MalformedError, match="must be zstd, got"):
                forms.undo_encodings(body, "zstd", 1 << 26)


@pytest.mark.parametrize("name", COMPRESS)
def test_encoded_bodies_may_follow_each_other(name: str) -> None:
    """RFC 1952 and RFC 8878 allow it; together they are bounded, too."""
    two = COMPRESS[name](b"a" * 9) + COMPRESS[name](b"b" * 9)
    assert forms.undo_encodings(two, name, 18) == b"a" * 9 + b"b" * 9
    with pytest.raises(TooLargeError):
        forms.undo_encodings(two, name, 17)


@pytest.mark.parametrize("name", COMPRESS)
def test_many_empty_bodies_cost_next_to_nothing(name: str) -> None:
    """Each was 20 bytes and a copy of all that follow: 6 MB of them held a worker for 40 s."""
    body = COMPRESS[name](b"") * 300_000
    began = time.process_time()
    with pytest.raises(TooLargeError, match="at most 1000 members"):
        forms.undo_encodings(body, name, len(body))
    assert time.process_time() - began < 2
    fewer = COMPRESS[name](b"x") * 1000
    assert forms.undo_encodings(fewer, name, 1000) == b"x" * 1000


def test_encodings_over_encodings_are_refused() -> None:
    """A header has room for a thousand, each of which reads the body anew."""
    with pytest.raises(UnsupportedMediaError, match="at most 3 encodings, got 4"):
        forms.undo_encodings(b"", "gzip, gzip, , identity, gzip, gzip", 9)


def test_an_unknown_encoding_is_415() -> None:
    """And the message says which are known."""
    with pytest.raises(UnsupportedMediaError, match=r"gzip, zstd, deflate or identity, got 'br'"):
        forms.undo_encodings(b"x", "br", 9)


@given(
    st.sampled_from(["; a=b", "; ", ';"', ";=", ";a*0=b", ';a="\\\\"']),
    st.integers(0, 8000),
    st.booleans(),
)
def test_headers_with_many_parameters_take_little_time(
    repeated: str, size: int, in_part: bool
) -> None:
    """The standard library reads them in quadratic time: 0.1 s for 8 KB, of each part."""
    more = (repeated * size)[:size]
    disposition = "form-data; name=x" + (more if in_part else "")
    part = f"--B\r\nContent-Disposition: {disposition}\r\n\r\nv\r\n".encode()
    kind = "multipart/form-data; boundary=B" + ("" if in_part else more)
    began = time.process_time()
    with suppress(RequestError):
        forms.read(part * 3 + b"--B--", kind, 100)
    assert time.process_time() - began < 0.1


def test_a_form_with_a_long_header_is_refused() -> None:
    """And the message says which, and how long it may be."""
    body, kind = form([("a" * 2100, "a/b", b"")])
    with pytest.raises(MalformedError, match="Content-Disposition must have at most 2048"):
        forms.read(body, kind, 100)
    with pytest.raises(MalformedError, match="Content-Type must have at most 2048"):
        forms.read(body, kind + "; a=" + "b" * 2048, 100)


@pytest.mark.parametrize("body", [b"x", {"read": "by the host"}])
def test_an_unknown_encoding_is_415_whoever_read_the_body(body: object) -> None:
    """TorchServe's own reader has decoded JSON already."""
    with pytest.raises(UnsupportedMediaError):
        forms.undo_encodings(body, "gzip, br", 9)


@pytest.mark.parametrize(
    "part",
    [
        b"no head and no blank line",
        b"Content-Disposition: form-data\r\n\r\nvalue",
        b"\r\nvalue",
    ],
)
def test_a_part_that_has_no_head_or_no_name_is_refused(part: bytes) -> None:
    """As malformed, in one line."""
    body = b"--b\r\n" + part + b"\r\n--b--\r\n"
    with pytest.raises(MalformedError, match="form"):
        forms.read(body, "multipart/form-data; boundary=b", 10)


def test_a_compressed_form_is_taken_apart() -> None:
    """Its content encoding is undone first, and is not told on."""
    body, kind = form([("body", "text/plain", b"x"), ("more", "text/plain", b"y")])
    headers = {"content-type": kind, "content-encoding": "gzip"}
    request = forms.request_of(gzip.compress(body), headers, **LIMITS)
    assert (request.body, request.fields) == (b"x", {"more": b"y"})
    assert request.header("content-encoding") is None


@pytest.mark.parametrize("filling", [";" * 1900, 'a="\\";' * 300, "a=b; " * 400])
def test_a_header_of_a_part_has_few_parameters(filling: str) -> None:
    """They are read in quadratic time, and a form may have a thousand parts."""
    part = f"--B\r\nContent-Disposition: form-data; {filling}name=x\r\n\r\n1\r\n".encode()
    with pytest.raises(MalformedError, match="must have at most 32 parameters"):
        forms.read(part * 999 + b"--B--\r\n", "multipart/form-data; boundary=B", 1000)
