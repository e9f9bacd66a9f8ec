"""Archives from elsewhere: they lie in the model store once a pinned key's signature held."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from marship.errors import MarshipError, PackageError, SignatureError, UsageError
from marship.storage import StorageError, replacing_all
from marship.trust.policy import Trust, Verified
from marship.trust.signature import beside

OnBytes = Callable[[int, int | None], None]
"""Told the bytes that are there, and how many there will be, where the server says so."""

TIMEOUT_S = (10, 60)  # to connect, and for each piece
MOST_SIGNATURE_BYTES = 16 << 20  # it names each file of the archive
MOST_UNSTATED_BYTES = 8 << 30
_PIECE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.mar")
_MISSING = (requests.codes.not_found, requests.codes.gone)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Where the archive lies, and who signed it."""

    path: Path
    verified: Verified


def fetch(
    url: str,
    trust: Trust,
    store: Path,
    on_bytes: OnBytes | None = None,
    *,
    most_unstated_bytes: int = MOST_UNSTATED_BYTES,
) -> Downloaded:
    """Get `url` and the signature at `url`.sig, and put both into the model store.

    They are verified in a folder of their own, by the rules of files that are at hand, before
    they take their names: an archive that fails leaves the store as it was.

    The signature comes first. Nothing of the archive is fetched before a pinned key has
    verified what it states, and no more than the size that is stated. A signature of OpenSSF
    Model Signing states none and is verified with the archive alone: there it is enough to
    name a pinned key, and `most_unstated_bytes` is the bound.

    Args:
        url: http or https; its last part is the archive's name. The transport is not what is
            trusted, so redirects are followed, and proxies and .netrc count.
        trust: The keys that count.
        store: The folder that takes both files.
        on_bytes: Told how far it is.
        most_unstated_bytes: Of an archive whose size its signature does not state.

    Raises:
        UsageError: The URL is none of an archive.
        SignatureError: There is no signature, or it does not hold.
        PackageError: The archive cannot be fetched.
        StorageError: The store has no room.
    """
    name = _name_of(url)
    with replacing_all(store) as drafts, requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # so that the length is the file's
        archive = drafts / name
        limit = _Limit(MOST_SIGNATURE_BYTES, "That is no signature.", StorageError)
        try:
            _save(session, f"{url}.sig", beside(archive), limit)
        except _MissingError as error:
            raise SignatureError(
                f"{name} must be signed, got no signature at {url}.sig. Put there what "
                "marship sign wrote."
            ) from error
        limit = _limit(trust.stated_bytes(archive), most_unstated_bytes, store)
        _save(session, url, archive, limit, on_bytes)
        verified = trust.verify(archive)
    return Downloaded(store / name, verified)


@dataclass(frozen=True, slots=True)
class _Limit:
    """The most bytes of a body, and what to do about more."""

    size_bytes: int
    advice: str
    kind: type[MarshipError]


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
    """The server has no such file."""


def _name_of(url: str) -> str:
    parts = urlsplit(url)
    name = unquote(parts.path).rpartition("/")[2]
    # what stands behind ? or # would take the .sig, and the archive be its own signature
    whole = parts.scheme in {"http", "https"} and not {"?", "#"} & set(url)
    if not whole or not _NAME.fullmatch(name):
        raise UsageError(
            f"the URL must be http(s)://.../NAME.mar without ? and #, got {url}. A file that is "
            "at hand is copied into the model store instead."
        )
    return name


def _save(
    session: requests.Session,
    url: str,
    path: Path,
    limit: _Limit,
    on_bytes: OnBytes | None = None,
) -> None:
    """Write a body to a file as it comes; to end early, or beyond the limit, is an error."""
    try:
        with session.get(url, stream=True, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            if answer.status_code != requests.codes.ok:
                kind = _MissingError if answer.status_code in _MISSING else PackageError
                raise kind(f"{url} must be answered with 200, got {answer.status_code}.")
            if (packed := answer.headers.get("Content-Encoding", "identity")) != "identity":
                raise PackageError(
                    f"{url} must be sent as the file is, got Content-Encoding {packed}. "
                    "Switch that off in the server for .mar and .sig."
                )
            length = answer.headers.get("Content-Length", "")
            size_bytes = int(length) if length.isdigit() else None
            done = 0
            for piece in answer.iter_content(_PIECE_BYTES):
                done += len(piece)
                if max(done, size_bytes or 0) > limit.size_bytes:
                    raise limit.kind(
                        f"{url} must have at most {limit.size_bytes:,} bytes, got "
                        f"{size_bytes or done:,}. {limit.advice}"
                    )
                file.write(piece)
                if on_bytes:
                    on_bytes(done, size_bytes)
    except requests.RequestException as error:
        reason = str(error).rpartition(": ")[2].strip("\"').")  # not the layers' names
        if isinstance(error, requests.exceptions.ChunkedEncodingError):
            reason = "an end before all of it had come"
        raise PackageError(f"{url} must be fetched whole, got: {reason}. Try again.") from error
