"""Signatures of OpenSSF Model Signing (OMS) 1.0 with a local key, through `model-signing`.

A Sigstore bundle with a DSSE envelope with an in-toto statement, signed with ECDSA. It has the
digest of the whole archive and its name, but not of the files in it.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from marship.errors import SignatureError, UsageError
from marship.trust.keys import PrivateKey, PublicKey

_BUNDLE = "application/vnd.dev.sigstore.bundle."


def is_bundle(value: dict[str, Any]) -> bool:
    """Whether a signature file's JSON is such a bundle."""
    return str(value.get("mediaType", "")).startswith(_BUNDLE)


def sign(archive: Path, target: Path, key: PrivateKey) -> None:
    """Write an archive's signature.

    Raises:
        UsageError: model-signing is not installed.
    """
    # bytes, despite its annotation: they are passed on to a function that requires bytes
    password = key.passphrase.encode() if key.passphrase else None
    config = _module("signing").Config()
    config.use_elliptic_key_signer(private_key=key.path, password=password)
    config.sign(archive, target)


def verify(
    archive: Path, signature: Path, bundle: dict[str, Any], keys: Iterable[PublicKey]
) -> PublicKey:
    """Verify an archive with a bundle.

    Returns:
        The key that signed it.

    Raises:
        UsageError: model-signing is not installed.
        SignatureError: None of these keys signed it, or it was modified or renamed.
    """
    verifying = _module("verifying")
    key = signer(archive, signature, bundle, keys)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key.path)
        config.verify(archive, signature)
        payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        (subject,) = (one["name"] for one in payload["subject"])
    except (
        Exception
    ) as error:  # it raises errors of many types, all of which mean that verification failed
        raise SignatureError(
            f"{archive.name} must be as it was signed, got: {type(error).__name__}: {error}. "
            "Get the original again, or sign it anew after you looked at what changed."
        ) from error
    if subject != archive.name:
        raise SignatureError(
            f"{archive.name} must have the name that it was signed under, {subject!r}. "
            "Rename it back, or sign it anew."
        )
    return key


def signer(
    archive: Path, signature: Path, bundle: dict[str, Any], keys: Iterable[PublicKey]
) -> PublicKey:
    """The key that a bundle claims to be signed by, not verified.

    Raises:
        SignatureError: It names none of these.
    """
    try:
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError) as error:
        raise SignatureError(
            f"{signature} must be made with a local key, got a bundle without one. Sign again."
        ) from error
    for key in keys:
        if _hint(key) == hint:
            return key
    raise SignatureError(
        f"{archive.name} must be signed with a key of the trust folder, got a signature of "
        f"another, whose hint is {str(hint)[:16]}. Add its public key if you trust it."
    )


def _hint(key: PublicKey) -> str:
    """A bundle's hint for a key: SHA-256 of its PEM."""
    pem = key.raw.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _module(name: str) -> Any:  # noqa: ANN401  its functions have no types
    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UsageError(
            f"the package model-signing must be there for such signatures, got: {error}. "
            "Run: pip install 'marship[openssf]'"
        ) from error
