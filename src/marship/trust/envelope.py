"""The signature file: a DSSE envelope (Dead Simple Signing Envelope 1.0).

    {"payload": <base64>, "payloadType": ..., "signatures": [{"keyid": ..., "sig": <base64>}]}

The signature is over DSSE's pre-authentication encoding of the payload with its type and both
lengths, so that a signature made for one purpose is not valid for another. See
github.com/secure-systems-lab/dsse, protocol.md and envelope.md; in-toto and OpenSSF Model
Signing use the same envelope.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship import texts
from marship.errors import SignatureError

PAYLOAD_TYPE = "application/vnd.marship.trust.archive.v1+json"
MAX_SIGNATURE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and its signature, not verified.

    Attributes:
        payload: The statement's bytes.
        key_id: The claimed id of the signing key, only a hint for finding it.
        signature: The signature of `encoded(payload)`.
    """

    payload: bytes
    key_id: str
    signature: bytes

    def to_bytes(self) -> bytes:
        """The signature file."""
        value = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"keyid": self.key_id, "sig": base64.b64encode(self.signature).decode()}
            ],
        }
        return json.dumps(value, indent=2).encode() + b"\n"


def encoded(payload: bytes) -> bytes:
    """The signed bytes: PAE of the DSSE protocol."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def load(path: Path) -> dict[str, Any]:
    """Read a signature file of any supported format.

    Raises:
        SignatureError: It is missing, cannot be read, or is not a JSON object.
    """
    try:
        with texts.open_file(path) as file:
            data = file.read(MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError as error:
        raise SignatureError(
            f"{path.name.removesuffix('.sig')} must be signed, got no {path.name} beside it. "
            "Sign it where its key is: marship sign"
        ) from error
    except OSError as error:
        raise SignatureError(
            f"{path} must be a signature's file, got: {error.strerror}. Put it there instead."
        ) from error
    try:
        value = texts.json_value(data, most_bytes=MAX_SIGNATURE_BYTES)
    except texts.TextError as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def parse(value: dict[str, Any], path: Path) -> Envelope:
    """The envelope in a signature file's JSON.

    Raises:
        SignatureError: It is corrupted, or has another payload type.
    """
    try:
        kind, (one,) = value["payloadType"], value["signatures"]
        found = Envelope(_decoded(value["payload"]), str(one["keyid"]), _decoded(one["sig"]))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _damaged(path) from error
    if kind != PAYLOAD_TYPE:
        raise SignatureError(f"{path} must be the signature of an archive, got one of {kind!r}.")
    return found


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _damaged(path: Path) -> SignatureError:
    return SignatureError(
        f"{path} must be a whole signature, got a damaged one. Get it again, or sign again."
    )
