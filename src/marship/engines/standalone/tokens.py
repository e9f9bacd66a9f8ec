"""The token of a host, from a file that somebody else renews, such as a mounted Secret.

Workers read tokens as TorchServe writes them; so the token is written in that form, and again
whenever the file has changed. It has no end of its own.
"""

import logging
from pathlib import Path

from marship import storage, texts
from marship.errors import MarshipError, UsageError

logger = logging.getLogger(__name__)

_LEAST, _MOST_BYTES = 16, 1 << 12
_ENDS = "9999-12-31T00:00:00+00:00"


class TokenFile:
    """A token in a file.

    Args:
        source: The file with the token alone, and perhaps a line end.
        key_file: Where workers read it.

    Raises:
        UsageError: The file cannot be read, or holds no token.
    """

    def __init__(self, source: Path, key_file: Path) -> None:
        self._source, self._key_file = source, key_file
        self._token = self._fault = ""
        self._write(_token(source))

    def renew(self) -> None:
        """Take the token anew if it has changed; a file without one changes nothing.

        What is wrong is logged once.
        """
        try:
            self._write(_token(self._source))
            fault = ""
        except (MarshipError, OSError) as error:  # of the file, or of a full disk
            fault = str(error)
        if fault and fault != self._fault:
            logger.warning("%s The last token stays.", fault)
        self._fault = fault

    def _write(self, token: str) -> None:
        if token != self._token:
            entry = {"key": token, "expiration time": _ENDS}
            storage.write_json(self._key_file, {"inference": entry})
            self._token = token


def _token(source: Path) -> str:
    try:
        with texts.open_file(source) as file:
            found = file.read(_MOST_BYTES).decode(errors="replace").strip()
    except OSError as error:
        raise UsageError(
            f"the token's file {source} must be readable, got: {error.strerror}. Mount the Secret."
        ) from error
    if len(found) < _LEAST or not (found.isascii() and found.isprintable()) or " " in found:
        raise UsageError(
            f"{source} must hold a token of at least {_LEAST} letters, digits and signs, got "
            f"{len(found)} characters. Make one with: openssl rand -hex 32"
        )
    return found
