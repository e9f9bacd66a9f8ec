"""Generates the configuration of nginx as a reverse proxy in front of TorchServe.

TorchServe listens on loopback. What nginx lets through is in the template `nginx.conf` beside this
file, each line with its reason; here its placeholders are filled in.
"""

import re
import stat
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from marship import storage, unversioned
from marship.engines.addresses import SPANS_SOCKET
from marship.engines.default import DefaultEngine
from marship.engines.engine import ServerConfig
from marship.engines.home import Home, default_home
from marship.errors import (
    MarshipError,
    NoAnswerError,
    NotFoundError,
    NotRunningError,
    RateLimitError,
    RequestError,
    TokenError,
    TooLargeError,
    UsageError,
)
from marship.exchange import sockets
from marship.operate import certificate
from marship.operate.proxy_settings import ProxySettings

TEMPLATE = Path(__file__).with_name("nginx.conf")
CONFIG_FILE = TEMPLATE.name

REFUSALS: Mapping[int, tuple[type[MarshipError], str]] = {
    400: (RequestError, "the request must be valid HTTP over TLS, got something else."),
    401: (
        TokenError,
        "the inference token must stand in the header Authorization: Bearer TOKEN, got none.",
    ),
    404: (
        NotFoundError,
        "the path must be /predictions/MODEL, with a model that is served here, or /ping.",
    ),
    405: (RequestError, "the method must be POST for predictions and GET for /ping."),
    413: (TooLargeError, "the body must be of {max_body_bytes} bytes at most, got more."),
    414: (TooLargeError, "the path must be of 3000 bytes at most, got more."),
    429: (RateLimitError, "the requests must come slower, got too many. Retry later."),
    431: (TooLargeError, "headers must be of 3000 bytes each and 6000 in all at most, got more."),
    500: (MarshipError, "the proxy must pass on every valid request, and failed."),
    502: (NotRunningError, "a server must run behind the proxy, got none. Retry later."),
    504: (NoAnswerError, "the server behind the proxy must respond in time, got no response."),
}
"""Error responses of nginx itself, by HTTP status: the class with the code, and the message."""

_LISTEN = re.compile(r"(?:(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]):)?(\d{1,5})")
_PLAIN_PATH = re.compile(r"[\w./@+,:-]+")
_PAGE_UPSTREAM = "marship_page"
_PAGE_LINES = Path(__file__).with_name("nginx.page.conf")
_ERROR_PLACE = "/.marship-error"
_UPSTREAM = "marship_model_"
_TRACE_HEADER = "\n        proxy_set_header traceparent $marship_traceparent;"
_SPANS = r"""

    # Of a request whose client wants it traced (W3C Trace Context, 3.2): trace, and span above.
    map $http_traceparent $marship_trace {
        "~^00-(?!0{32})(?<marship_of>[0-9a-f]{32})-(?!0{16})(?<marship_above>[0-9a-f]{16})-.[13579bdf]\z"
            $marship_of;
    }

    # The span of this proxy; what the server does is below it.
    map $request_id $marship_span {
        "~^(?<marship_own>.{16})" $marship_own;
    }
    map $marship_trace $marship_traceparent {
        "" $http_traceparent;
        default 00-$marship_trace-$marship_span-01;
    }

    # The server sends it with its own. Nobody waits for that, and without a server it is dropped.
    log_format marship_span escape=json
        '{"trace":"$marship_trace","above":"$marship_above","span":"$marship_span",'
        '"state":"$http_tracestate","ended_s":$msec,"took_s":$request_time,"id":"$marship_id",'
        '"request":"$request","status":$status}';
    access_log syslog:server=unix:@,nohostname,tag=marship marship_span if=$marship_trace;"""
"""The socket stands for @."""


@dataclass(frozen=True, slots=True)
class Written:
    """The result of `write`."""

    config: Path
    models: tuple[str, ...]
    backend: str
    certificate: Path


class _Blanks(string.Template):
    """Placeholders `%{name}`, as nginx's variables start with a dollar."""

    delimiter = "%"


def write(settings: ProxySettings, names: Sequence[str]) -> Written:
    """Write the configuration, and with `self_signed` a certificate, into the folder.

    Args:
        settings: What to write, and where.
        names: The models that clients may use.

    Raises:
        UsageError: A setting is invalid, or no model is named.
    """
    server = DefaultEngine.server_config(settings.home)
    _check(settings, server, names)
    _make_private(settings.out)
    if settings.self_signed:
        unversioned.ignore(settings.out / certificate.KEY_FILE)
        chain, key = certificate.self_signed(settings.out)
    else:
        chain, key = _given_certificate(settings)
    text = render(settings, server, names, chain, key)
    with storage.replacing(settings.out / CONFIG_FILE) as draft:
        draft.write_text(text)
    return Written(settings.out / CONFIG_FILE, tuple(names), _backends(server)[0], chain)


def render(
    settings: ProxySettings,
    server: ServerConfig,
    names: Sequence[str],
    chain: Path,
    key: Path,
) -> str:
    """The configuration's text.

    Args:
        settings: Limits and address.
        server: The server's settings.
        names: The models that clients may use.
        chain: The certificate file.
        key: The private key file.
    """
    return _Blanks(TEMPLATE.read_text()).substitute(
        listen=settings.address,
        model_upstreams="\n".join(_model_upstreams(names)),
        upstreams="\n".join(_upstreams(server, names, with_page=settings.page)),
        certificate=chain,
        certificate_key=key,
        models="|".join(re.escape(name) for name in sorted(set(names))),
        rate=settings.rate,
        burst=settings.burst,
        connections=settings.connections,
        client_timeout_s=settings.client_timeout_s,
        answer_timeout_s=settings.answer_timeout_s,
        max_body_bytes=server.max_request_bytes,
        page=_page(names) if settings.page else "",
        errors="\n".join(_error_lines(server.max_request_bytes)),
        spans=_SPANS.replace("@", str(_spans_socket(settings))) if settings.traces else "",
        trace_header=_TRACE_HEADER if settings.traces else "",
    )


def without_archive(home: Path | None, names: Sequence[str]) -> tuple[list[str], Path]:
    """The names without an archive in the server's model store, and the store."""
    record = Home((home or default_home()).absolute()).running()
    own = record.model_store if record else DefaultEngine.server_config(home).model_store
    store = Path(own or "model_store")
    return [name for name in names if not (store / f"{name}.mar").is_file()], store


def _check(settings: ProxySettings, server: ServerConfig, names: Sequence[str]) -> None:
    if not names:
        raise UsageError(
            "the models that clients may use must be named, got none. Run: marship proxy NAME ..."
        )
    for name in names:
        DefaultEngine.check_name(name)
    match = _LISTEN.fullmatch(settings.address)
    if match is None or not 0 < int(match[1]) <= 65535:  # noqa: PLR2004  the highest port
        raise UsageError(
            f"listen must be a port or address:port such as 127.0.0.1:8443, got "
            f"{settings.address!r}."
        )
    if not server.checks_tokens:
        raise UsageError(
            "the server must require tokens, got disable_token_authorization=true: the proxy "
            "hands them on and checks none itself. Set it to false."
        )
    if settings.page and len(server.prediction_addresses) == 1:
        raise UsageError(
            "page must have a server with a direct address, which serves it, got one without. Set "
            "direct_address, or leave --page out."
        )
    if urlsplit(server.inference_address).scheme not in ("http", "unix"):
        raise UsageError(
            "inference_address must begin with http:// or unix:, since TLS ends at the proxy, "
            f"got {server.inference_address!r}."
        )


def _backends(server: ServerConfig) -> list[str]:
    """Where requests go: to the workers, and where these do not listen to TorchServe."""
    return [
        address if address.startswith(sockets.PREFIX) else urlsplit(address).netloc
        for address in server.prediction_addresses
    ]


def _model_upstreams(names: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(sorted(set(names))):
        yield f'{" " * 8}"~^{re.escape(name)}\\z" {_UPSTREAM}{number};'


def _page(names: Sequence[str]) -> str:
    """The locations of the page; the document is of these models alone."""
    exposed = ",".join(sorted(set(names)))
    return _Blanks(_PAGE_LINES.read_text()).substitute(exposed=exposed)


def _upstreams(server: ServerConfig, names: Sequence[str], *, with_page: bool) -> Iterator[str]:
    """An upstream for each model, one for the server itself, and one for its page."""
    first, *others = _backends(server)
    page = (_PAGE_UPSTREAM,) if with_page else ()
    for name in ("marship_server", *(f"{_UPSTREAM}{n}" for n in range(len(set(names)))), *page):
        yield f"    upstream {name} {{"
        yield f"        server {first} max_fails=0;"
        for other in () if name in page else others:  # TorchServe itself has no page
            yield f"        server {other} max_fails=0 backup;"
        yield "        keepalive 64;"
        yield "        keepalive_requests 100000;"
        yield "    }"


def _given_certificate(settings: ProxySettings) -> tuple[Path, Path]:
    if settings.certificate is None or settings.certificate_key is None:
        raise UsageError(
            "certificate and certificate_key must both be given, or self_signed for a trial. "
            "Run: marship proxy --certificate FILE --certificate-key FILE"
        )
    paths = settings.certificate.absolute(), settings.certificate_key.absolute()
    for path in paths:
        _check_plain(path)
    _check_closed(paths[1])
    return paths


def _spans_socket(settings: ProxySettings) -> Path:
    """Where the server takes what is said of traced requests."""
    path = (settings.home or default_home()).absolute() / SPANS_SOCKET
    _check_plain(path)
    if "," in str(path) or sockets.is_too_long(str(path)):
        raise UsageError(
            f"with --traces, the home's path must have no comma and at most "
            f"{sockets.LONGEST_PATH - len(path.name) - 1} bytes, got {path.parent}. Start the "
            "server in another home."
        )
    return path


def _check_closed(key: Path) -> None:
    """Reject a key that others can read; a group may, as nginx often gets root's keys so."""
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError:
        return  # it does not exist yet, or only nginx's user can access it
    if mode & stat.S_IRWXO:
        raise UsageError(
            f"{key} must be closed to other users of the machine, got mode {mode:04o}. "
            f"Run: chmod o= {key}, and get a new certificate if others may have read it."
        )


def _check_plain(path: Path) -> None:
    """Reject paths with variables, quotes and braces, which nginx would interpret."""
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise UsageError(
            f"a path in nginx.conf must be of letters, digits and _ . / @ + , : -, got {path}. "
            "Choose another."
        )


def _make_private(folder: Path) -> None:
    """Create a private folder; the mode of an existing one is not changed."""
    _check_plain(folder.absolute())
    try:
        unversioned.make_folder(folder)
    except OSError as error:
        raise UsageError(
            f"{folder} must be a folder of your own, got: {error.strerror}. "
            "Choose another with --out."
        ) from error


def _error_lines(max_body_bytes: int) -> Iterator[str]:
    indent = " " * 8
    yield f"{indent}error_page 494 =431 {_ERROR_PLACE}/431;"  # nginx's own: headers too large
    yield f"{indent}error_page 495 496 497 =400 {_ERROR_PLACE}/400;"  # TLS, or none
    yield f"{indent}error_page 501 505 =400 {_ERROR_PLACE}/400;"  # an encoding, an HTTP it lacks
    for status, (kind, text) in REFUSALS.items():
        message = text.format(max_body_bytes=max_body_bytes)
        place = f"{_ERROR_PLACE}/{status}"
        yield f"{indent}error_page {status} {place};"
        yield f"{indent}location = {place} {{"
        yield f"{indent}    internal;"
        yield f'''{indent}    return {status} '{{"code":"{kind.code}","message":"{message}"}}';'''
        yield f"{indent}}}"
