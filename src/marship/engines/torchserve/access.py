"""A server's addresses and tokens: given, or read from its home folder."""

import os
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from marship import storage
from marship.engines.addresses import TOKEN_VARIABLES, URL_VARIABLES, Target
from marship.engines.home import Home, ServerRecord, default_home
from marship.engines.torchserve import peers
from marship.engines.torchserve.peers import ConnectedSocket
from marship.engines.torchserve.problems import (
    checked,
    crash,
    has_no_worker,
    is_of_another_api,
    is_token_refused,
)
from marship.errors import (
    DataError,
    MarshipError,
    NotRunningError,
    ScaledToZeroError,
    TokenError,
    UsageError,
)
from marship.exchange import limited, sockets
from marship.exchange.calls import Call, Flow, HttpResponse, Pause, Side
from marship.exchange.retries import Crashes, RetryPolicy, persistent

_SIDES: tuple[Side, ...] = ("inference", "management", "metrics")
_SCHEMES = ("http://", "https://", sockets.SCHEME)
_ROUNDS = 5  # callers may renew at the same time, and each renewal invalidates the last token
_REREAD_S = 0.02
_LAST_PART, _LONGEST_LAST_S = 0.1, 60.0
"""A token is renewed in the last tenth of its remaining lifetime, or in its last minute."""


class Access:
    """Addresses and tokens of one server.

    The home's tokens are only sent to addresses of the server that runs from it, whether they
    were read or given.

    Args:
        target: Which server is meant.
    """

    def __init__(self, target: Target) -> None:
        home, urls, tokens = target.home, target.urls, target.tokens
        self._retry_s, self._on_retry, self._has_met = target.retry_s, target.on_retry, False
        self._copies = target.copies
        self.home = Home(Path(home or default_home()).absolute())
        self.tls = None if target.ca is None else _trusting(Path(target.ca))
        if home is None:
            urls = {side: urls.get(side) or os.environ.get(URL_VARIABLES[side]) for side in _SIDES}
        self._urls = {side: _checked(side, url) for side, url in urls.items() if url}
        self._is_elsewhere = home is None and bool(self._urls)
        self._record: ServerRecord | None = None
        self._bases: dict[str, str] = {}  # the addresses in use of the record `_bases_of`
        self._bases_of: ServerRecord | None = None
        self._given = {
            side: token
            for side, variable in TOKEN_VARIABLES.items()
            if (token := tokens.get(side) or os.environ.get(variable))
        }
        for side, token in self._given.items():
            _check_token(side, token)
        self._found: dict[str, str] | None = None
        self._renew_at: dict[str, float] = {}  # in wall-clock time, as the server's expiration

    @property
    def is_local(self) -> bool:
        """Whether the server is local: its addresses are read from its home."""
        return "management" not in self._urls and not self._is_elsewhere

    @property
    def model_store(self) -> Path:
        """The folder of the running server's archives; of a remote one, that of their copies.

        Raises:
            NotRunningError: No server runs in the home.
        """
        return Path(self.home.require_running().model_store) if self.is_local else self._copies

    def has(self, side: Side) -> bool:
        """Whether an API has an address, given or from the home."""
        return side in self._urls or not self._is_elsewhere

    def url(self, call: Call) -> str:
        """The URL of a call, without its query parameters.

        Raises:
            UsageError: The server is remote, and this address of it is not given.
            NotRunningError: No address is given, and no server runs in the home.
        """
        if call.side in self._urls:
            return self._urls[call.side] + call.path
        if self._is_elsewhere:
            raise UsageError(
                f"the {call.side} address must be given for a server elsewhere, got that of "
                f"{' and '.join(self._urls)} alone. Set {URL_VARIABLES[call.side]}, or name the "
                "server's home with --home."
            )
        if self._record is None:
            self._record = self.home.require_running()
        if self._bases_of is not self._record:  # other calls read the home again, too
            self._bases_of = self._record
            self._bases = {side: self._record.addresses(side)[0] for side in _SIDES}
        return self._bases[call.side] + call.path

    def check_peer(self, base: str, line: ConnectedSocket) -> None:
        """Check that a new connection is to the home's own server, if that is the target.

        Another program may use its port or socket path once the server has stopped. Nothing has
        been sent yet.

        Args:
            base: The connection's target, as of `sockets.base_of`.
            line: The connection.

        Raises:
            NotRunningError: Another program listens there.
        """
        record = self._record
        if record is None or not record.group.is_alive():
            record = self.home.record()
        is_homes = record is not None and any(
            sockets.base_of(address) == base
            for side in _SIDES
            for address in record.addresses(side)
        )
        is_given = base in map(sockets.base_of, self._urls.values())
        if is_given and not (is_homes and self._found is not None):
            return  # a remote server, whose token was given
        if record is None or not is_homes or not _is_held(line, record, base):
            self._record = None
            raise NotRunningError(
                f"the server of {self.home.path} must listen at {base}, got another program "
                "there, or none by now; nothing was sent. Start one with: marship serve"
            )

    def authorized(self, call: Call) -> Flow[HttpResponse]:
        """Make a call with its token, which is renewed before it expires or once it is rejected.

        Raises:
            TokenError: No available token is accepted.
            MarshipError: The response is an error.
        """
        policy = RetryPolicy(self._retry_s if call.is_retryable else 0.0, self._on_retry)
        for _ in range(_ROUNDS):
            token = yield from self._token(call.side)
            response = yield from persistent(
                call.with_token(token),
                policy,
                has_met=self._has_met,
                crashes=Crashes(crash, self._response_timeout_s, self._check_workers),
            )
            self._has_met = True
            if call.side in self._urls and is_of_another_api(response, call.side):
                raise _other_api(call.side, self._urls[call.side])
            if call.side not in TOKEN_VARIABLES or not is_token_refused(response):
                return checked(response)
            yield from self._renew(call.side, token)
        raise self._refused(call.side)

    def _response_timeout_s(self, call: Call) -> Flow[float | None]:
        """The model's responseTimeout; where it is unknown a crash is reported."""
        try:
            return float((yield from self._asked_model(call))["responseTimeout"])
        except (LookupError, TypeError, ValueError):
            return None

    def _check_workers(self, call: Call, response: HttpResponse) -> Flow[None]:
        """Look whether a model that has no worker will get one: TorchServe says only the first.

        Raises:
            ScaledToZeroError: None is wanted.
        """
        if not has_no_worker(response):
            return
        model = yield from self._asked_model(call)
        if model.get("minWorkers") == 0 and model.get("workers") == []:
            _, name, *version = (unquote(part) for part in call.path[1:].split("/"))
            raise ScaledToZeroError.of(name, *version)

    def _asked_model(self, call: Call) -> Flow[dict[str, Any]]:
        """What the management API says of a prediction's model; empty if it is not known."""
        if "management" not in self._urls and "inference" in self._urls:
            return {}  # the home may belong to another server
        about = call.path.replace("/predictions/", "/models/", 1)
        try:
            token = yield from self._token("management")
            response: HttpResponse = yield Call("management", "GET", about).with_token(token)
            return dict(checked(response).json()[0])
        except (MarshipError, LookupError, TypeError, ValueError):
            return {}

    def _token(self, side: Side) -> Flow[str | None]:
        """The token to send; None if the server checks none."""
        if side in self._given:
            return self._given[side]
        if not self._is_homes(side):
            return None
        if self._found is None:
            self._found = yield from self._read_tokens()
        if time.time() >= self._renew_at.get(side, float("inf")):
            del self._renew_at[
                side
            ]  # only one of several flows renews, and once: a rejection renews again
            with suppress(MarshipError):
                yield from self._renew(side, self._found.get(side))
        return self._found.get(side)

    def _is_homes(self, side: Side) -> bool:
        """Whether an API's address is that of the home's own server."""
        if side not in self._urls:
            return True
        self._record = self._record or self.home.running()
        return self._record is not None and self._urls[side] in self._record.addresses(side)

    def _read_tokens(self) -> Flow[dict[str, str]]:
        """Read the key file; TorchServe writes it in place, so a read may see half of it."""
        for _ in range(_ROUNDS):
            try:
                raw: Any = storage.read_json(self.home.key_file)
                keys = {side: raw[side]["key"] for side in TOKEN_VARIABLES}
                self._renew_at = {side: _last_part(raw[side]) for side in TOKEN_VARIABLES}
                return keys | {"API": raw["API"]["key"]}
            except storage.MissingError:
                return {}
            except (DataError, KeyError, TypeError, ValueError):
                yield Pause(_REREAD_S)
        raise TokenError(
            f"{self.home.key_file} must hold the server's tokens, got a damaged file. "
            "Restart the server: marship stop, then marship serve"
        )

    def _renew(self, side: Side, old: str | None) -> Flow[None]:
        """Read the key file again; if the token is unchanged, request a new one."""
        if side in self._given or not self._is_homes(side):
            raise self._refused(side)
        self._found = yield from self._read_tokens()
        if self._found.get(side) != old:
            return
        if "API" not in self._found or not self._is_homes("management"):
            raise self._refused(side)
        request = Call("management", "GET", "/token", {"type": side})
        response: HttpResponse = yield request.with_token(self._found["API"])
        if is_token_refused(response):
            raise self._refused(side)
        checked(response)
        self._found = yield from self._read_tokens()

    def not_reachable(self, url: str) -> NotRunningError:
        """The error of a refused connection; the home is read again before the next call."""
        self._record = None
        is_given = any(url.startswith(given) for given in self._urls.values())
        advice = (
            "Check the address, and that the server runs and can be reached from here."
            if is_given
            else "Start one with: marship serve"
        )
        return NotRunningError(f"a server must listen at {url}, got no connection. {advice}")

    def _refused(self, side: Side) -> TokenError:
        variable = TOKEN_VARIABLES[side]
        if side in self._given:
            is_environments = self._given[side] == os.environ.get(variable)
            without = f"unset {variable}" if is_environments else "pass none"
            return TokenError(
                f"the {side} token must be the server's and not older than its "
                "token_expiration_min, got one that it refuses. Take the new one from the "
                f"server's key_file.json, make sure that the address is that of the {side} API, "
                f"or {without} where the server's home is local."
            )
        if not self._is_homes(side):
            return TokenError(
                f"the {side} token must be given for {self._urls[side]}, got none: the server of "
                f"{self.home.path} has another address, and its tokens go nowhere else. Pass "
                f"{side}_token, set {variable}, use --token-file, or name that server's home with "
                "MARSHIP_HOME."
            )
        return TokenError(
            f"the {side} token must be the server's, got none that it accepts in "
            f"{self.home.key_file}. Name the server's home with --home or MARSHIP_HOME, or set "
            f"{variable}."
        )


def _trusting(ca: Path) -> ssl.SSLContext:
    """Trust the CA certificates of a file only.

    Raises:
        UsageError: The file is missing or holds no certificate.
    """
    try:
        return limited.tls_context(ca.absolute())
    except OSError as error:
        reason = error.strerror if error.errno else "no certificate in PEM"
        raise UsageError(
            f"CA certificates must be in a PEM file, got {ca}: {reason}. Name the certificate "
            "of who signed the server's; of a self-signed one itself: proxy/self-signed.pem."
        ) from error


def _check_token(side: str, token: str) -> None:
    """Check that a token can be sent: the HTTP library's error would show it.

    Raises:
        UsageError: It has spaces, line ends or non-ASCII characters.
    """
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError(
            f"the {side} token must be one word of ASCII letters, got other characters in it, "
            f"perhaps a line end. See {TOKEN_VARIABLES[side]}, or use --token-file."
        )


def _other_api(side: Side, base: str) -> UsageError:
    """The error of an address that is that of another API."""
    return UsageError(
        f"{side}_url must be the address of TorchServe's {side} API, got {base}, where there is "
        "none: TorchServe has a port for each API (8080 inference, 8081 management, 8082 metrics "
        "as shipped), and the proxy passes on predictions alone. Name that port."
    )


def _is_held(line: ConnectedSocket, record: ServerRecord, base: str) -> bool:
    """Whether a connection ends at the process of the server that should listen there."""
    acceptor = record.acceptor
    direct = map(sockets.base_of, record.direct_addresses)
    return peers.is_held_by(line, acceptor if acceptor and base in direct else record.group)


def _checked(side: str, url: str) -> str:
    """A given address, validated and without a trailing slash.

    Raises:
        UsageError: It is not an address, or has user info, query or fragment.
    """
    try:
        has_host = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        has_host = False
    scheme, separator, rest = url.partition("://")
    url = f"{scheme.lower()}{separator}{rest}"
    if "@" in rest:  # what stands before it may be a password
        raise UsageError(
            f"{side}_url must be http(s)://HOST[:PORT] without user and password, got {scheme}://...@"
            f"{rest.rpartition('@')[2]}. A token is passed as {side}_token, or with --token-file."
        )
    is_plain = url.isascii() and url.isprintable() and not set(url) & set("?#\\ ")
    if not (has_host and is_plain and url.startswith(_SCHEMES)):
        raise UsageError(
            f"{side}_url must be http(s)://HOST[:PORT] of ASCII letters, with a port from 1 to "
            f"65535 and without ? and #, got {url!r}."
        )
    return url.rstrip("/")


def _last_part(token: Mapping[str, str]) -> float:
    """When to renew a token that was read now, in seconds since 1970."""
    ends, now = datetime.fromisoformat(token["expiration time"]).timestamp(), time.time()
    return ends - min(_LAST_PART * max(ends - now, 0), _LONGEST_LAST_S)
