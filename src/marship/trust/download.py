"""Downloads archives into the model store, after verifying their signature by a pinned key."""

import http.client
import re
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_ import create_urllib3_context

from marship.errors import MarshipError, PackageError, SignatureError, StorageError, UsageError
from marship.exchange.limited import LimitedSocket, LimitedTLSSocket, OverLimitError, TransferLimits
from marship.storage import replacing_all
from marship.trust.policy import Trust, Verified
from marship.trust.signature import beside

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes received, and the total if the server states it."""

TIMEOUT_S = (10, 60)  # to connect, and for one read
WINDOW_S = 60.0  # for headers, and for each chunk: one byte a minute is too slow
MOST_SIGNATURE_BYTES = 16 << 20  # it lists each file of the archive
MOST_UNSTATED_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 16
_WINDOW_BYTES = 4 << 20  # for a read in the smallest chunks, or for headers
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_SHOWN, _LONGEST_REASON = 40, 200
_LAYERS = re.compile(r"\[SSL: \w+\] | \(_ssl\.c:\d+\)")
_PASSWORD = re.compile(r"(?<=//)\S*@|^[^/]*@")
_CUT_OFF = (http.client.RemoteDisconnected, ConnectionResetError, ssl.SSLEOFError)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.mar")
_MISSING = (requests.codes.not_found, requests.codes.gone)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The downloaded archive, and the key that signed it."""

    path: Path
    verified: Verified


def fetch(
    url: str,
    trust: Trust,
    store: str | Path,
    on_bytes: OnBytes | None = None,
    *,
    most_unstated_bytes: int = MOST_UNSTATED_BYTES,
) -> Downloaded:
    """Download `url` and its signature `url`.sig into the model store.

    They are verified in a separate folder, by the same rules as local files, before they are
    moved: if verification fails, the store is unchanged.

    The signature is downloaded first. Nothing of the archive is downloaded before the statement
    is verified by a pinned key, and no more than the size that it states. The download is aborted
    if the server sends less than a chunk in `WINDOW_S`. A signature of OpenSSF Model Signing
    states no size and can only be verified with the archive: there it is enough that it names a
    pinned key, and `most_unstated_bytes` is the limit.

    Args:
        url: http or https; its last segment is the archive's name. Trust does not depend on the
            transport, so redirects are followed, and proxies and .netrc are used.
        trust: The trusted keys.
        store: The folder for both files.
        on_bytes: Called with progress.
        most_unstated_bytes: Maximum size of an archive whose signature does not state its size.

    Raises:
        UsageError: The URL does not name an archive.
        SignatureError: There is no signature, or it is not valid.
        PackageError: The archive cannot be downloaded.
        StorageError: The disk of the store is full.
    """
    store = Path(store)
    name = _name_of(url)
    with replacing_all(store) as drafts, _Session() as session:
        archive = drafts / name
        limit = _Limit(MOST_SIGNATURE_BYTES, "That is no signature.", StorageError)
        try:
            _save(session, f"{url}.sig", beside(archive), limit)
        except _MissingError as error:
            raise SignatureError(
                f"{name} must be signed, got no signature at {_plain(url)}.sig. Put there what "
                "marship sign wrote."
            ) from error
        limit = _limit(trust.stated_bytes(archive), most_unstated_bytes, store)
        _save(session, url, archive, limit, on_bytes)
        verified = trust.verify(archive)
    return Downloaded(store / name, verified)


@dataclass(frozen=True, slots=True)
class _Limit:
    """The maximum size of a body, and the advice and error if it is exceeded."""

    size_bytes: int
    advice: str
    kind: type[MarshipError]

    def check(self, url: str, size_bytes: int) -> None:
        """Check a received or announced size."""
        if size_bytes > self.size_bytes:
            raise self.kind(
                f"{url} must have at most {self.size_bytes:,} bytes, got {size_bytes:,}. "
                f"{self.advice}"
            )


def _limit(stated_bytes: int | None, most_unstated_bytes: int, store: Path) -> _Limit:
    free_bytes = shutil.disk_usage(store).free
    if stated_bytes is None:
        allowed = _Limit(most_unstated_bytes, "Copy a larger one by hand.", PackageError)
    else:
        allowed = _Limit(
            stated_bytes, "It is not what was signed: get the right one.", SignatureError
        )
    if allowed.size_bytes > free_bytes:
        return _Limit(free_bytes, f"Free some space in {store}.", StorageError)
    return allowed


class _MissingError(PackageError):
    """The server does not have the file."""


def _name_of(url: str) -> str:
    name = ""
    with suppress(ValueError):  # for an invalid host or port
        parts = urlsplit(url)
        # .sig would be appended to a query or fragment: the archive would be its own signature
        if parts.scheme in {"http", "https"} and _has_host(parts) and not {"?", "#"} & set(url):
            name = unquote(parts.path).rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the URL must be http(s)://.../NAME.mar without ? and #, got {_plain(url)}. A file "
            "on this machine is copied into the model store instead."
        )
    return name


def _has_host(parts: SplitResult) -> bool:
    """Whether there is a host and, if given, a valid port.

    Raises:
        ValueError: The port is invalid.
    """
    return bool(parts.hostname) and parts.port != 0


def _save(
    session: "_Session",
    url: str,
    path: Path,
    limit: _Limit,
    on_bytes: OnBytes | None = None,
) -> None:
    """Write a body to a file as it arrives; raises if it ends early or exceeds the limit."""
    place, url = url, _plain(url)
    with _faults(url), session.found(place) as response, path.open("wb") as file:
        if response.status_code != requests.codes.ok:
            kind = _MissingError if response.status_code in _MISSING else PackageError
            raise kind(f"{url} must respond with 200, got {response.status_code}.")
        packed = response.headers.get("Content-Encoding", "").strip()
        if packed.lower() not in ("", "identity"):
            raise PackageError(
                f"{url} must be sent as the file is, got Content-Encoding "
                f"{packed[:_SHOWN]!r}. Switch that off in the server for .mar and .sig."
            )
        size_bytes = _length(url, response.headers.get("Content-Length"))
        limit.check(url, size_bytes or 0)
        done = kept_up = 0
        session.hurry()
        for chunk in response.iter_content(_CHUNK_BYTES):
            done += len(chunk)
            limit.check(url, done)
            file.write(chunk)
            if done - kept_up >= _CHUNK_BYTES:
                session.hurry()
                kept_up = done
            if on_bytes:
                on_bytes(done, size_bytes)


def _plain(url: str) -> str:
    """The URL for an error, which may be logged: without a password."""
    return _PASSWORD.sub("", url)


def _length(url: str, value: str | None) -> int | None:
    """The size by Content-Length: digits only (RFC 9110, 8.6), within the size of a disk."""
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise PackageError(
            f"{url} must state its length in digits, got {value[:_SHOWN]!r}. Get it from another "
            "server."
        )
    return int(value)


class _Session(requests.Session):
    """Follows redirects without reading their bodies; every read has a deadline."""

    def __init__(self) -> None:
        super().__init__()
        self._limits = TransferLimits()
        self.headers["Accept-Encoding"] = "identity"  # so that the length is the file's
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(self._limits))

    def hurry(self) -> None:
        """Restart the deadline for the next headers, or the next chunk of a body."""
        self._limits.restart(WINDOW_S, _WINDOW_BYTES)

    def found(self, url: str) -> requests.Response:
        """The response at a URL after redirects; its body is not read yet."""
        place = url
        for _ in range(_MOST_REDIRECTS + 1):
            self.hurry()
            response = self.get(place, stream=True, timeout=TIMEOUT_S, allow_redirects=False)
            target = response.headers.get("Location", "")
            if response.status_code not in _REDIRECTS or not target:
                return response
            response.close()
            place = urljoin(place, target)
        raise PackageError(
            f"{_plain(url)} must lead to a file, got more than {_MOST_REDIRECTS} redirects. Name "
            "the last address."
        )

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read a redirect's whole body, even without following it."""


class _Adapter(HTTPAdapter):
    """Lets a session connect with limited sockets, also through proxies."""

    def __init__(self, limits: TransferLimits) -> None:
        self._limits = limits
        self._tls = create_urllib3_context()
        self._tls.sslsocket_class = LimitedTLSSocket
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*args, **kwargs, ssl_context=self._tls)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401
        return super().proxy_manager_for(proxy, **kwargs, ssl_context=self._tls)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        limits, kind = self._limits, type(pool).ConnectionCls

        class Limited(kind):  # type: ignore[misc, valid-type]  # plain, or with TLS
            def _new_conn(self) -> LimitedSocket:
                line = super()._new_conn()
                timeout_s = line.gettimeout()
                limited = LimitedSocket(fileno=line.detach())
                limited.settimeout(timeout_s)
                limited.limits = limits
                return limited

            def connect(self) -> None:
                super().connect()
                self.sock.limits = limits  # TLS has created another socket

        pool.ConnectionCls = Limited
        return pool


@contextmanager
def _faults(url: str) -> Iterator[None]:
    """Convert errors of requests to our own."""
    try:
        yield
    except OverLimitError as error:
        raise PackageError(
            f"{url} must respond by HTTP, got more than {_WINDOW_BYTES:,} bytes of it."
        ) from error
    except (requests.RequestException, ValueError) as error:
        raise PackageError(f"{url} must be fetched whole, got: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The root cause, without the wrapping layers, and advice."""
    root = error
    while cause := root.__cause__ or root.__context__:
        root = cause
    said = _plain(_LAYERS.sub("", " ".join(str(root).split())))
    reason, advice = said.rpartition(": ")[2].rstrip(".")[:_LONGEST_REASON], "Try again."
    if isinstance(error, requests.ReadTimeout) or "timed out" in said or "deadline" in said:
        reason = f"less than {_CHUNK_BYTES >> 10} KiB in {WINDOW_S:g} s"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError) or isinstance(root, _CUT_OFF):
        reason = "an end before all of it had come"
    elif isinstance(root, ssl.SSLCertVerificationError):
        advice = "Use a name that its certificate holds, or trust it with REQUESTS_CA_BUNDLE."
    elif isinstance(root, ssl.SSLError):
        advice = "The server must speak TLS 1.2 or newer there, and want no client's certificate."
    return f"{reason}. {advice}"
