"""Who may ask: the inference token in the server's key file.

The host writes the file and renews it; each key in it has an end:

    {"inference": {"key": "...", "expiration time": "2026-11-28T19:00:00.123Z"}, ...}
"""

import hmac
import json
import logging
import time
from datetime import datetime
from pathlib import Path

from marship.errors import MarshipError

logger = logging.getLogger(__name__)

_LOOK_S = 0.25
_NEW_S = 2.0
"""A token that was renewed while this process looked is right for so long, whatever the clock says:
where the clock is set, the host and this process may notice it at different times."""
_SCHEME = b"Bearer "


class RefusedError(MarshipError):
    """A request without a token that is accepted now."""

    status = 401
    code = "token"


class Tokens:
    """The token that requests must carry.

    Args:
        file: The key file; None asks for no token.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._key, self._ends = b"", 0.0
        self._stamp: tuple[int, int, int] | None = None
        self._looked = 0.0
        self._new_until = 0.0  # monotonic

    def check(self, authorization: bytes | None) -> None:
        """Accept a request or not.

        Raises:
            RefusedError: The token is missing, wrong or expired.
        """
        if self._file is None:
            return
        now = time.time()
        if now - self._looked > _LOOK_S or now < self._looked:
            self._look(now)
        if self._is_right(authorization, now):
            return
        self._look(now)  # it may have been renewed just now
        if not self._is_right(authorization, now):
            raise RefusedError(
                "the inference token must be sent as Authorization: Bearer TOKEN, got "
                f"{'none' if authorization is None else 'one that is wrong or expired'}. "
                "The server's key_file.json has it."
            )

    def _is_right(self, authorization: bytes | None, now: float) -> bool:
        if authorization is None or not self._key:
            return False
        if now >= self._ends and time.monotonic() >= self._new_until:
            return False
        given = authorization[len(_SCHEME) :]
        is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME.lower()
        return is_bearer and hmac.compare_digest(given, self._key)

    def _look(self, now: float) -> None:
        """Read the file again, if it has changed; one that is half written keeps the last key."""
        assert self._file is not None  # noqa: S101  check returns before
        self._looked = now
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            entry = json.loads(self._file.read_bytes())["inference"]
            key = str(entry["key"]).encode()
            ends = datetime.fromisoformat(entry["expiration time"]).timestamp()
        except FileNotFoundError:
            self._key, self._stamp = b"", None  # the server has ended
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the key file must hold the inference token, got: %r", error)
        else:
            if self._stamp is not None:  # it was renewed just now: the clocks differ
                self._new_until = time.monotonic() + _NEW_S
            self._key, self._ends, self._stamp = key, ends, stamp
