"""Signatures of OpenSSF Model Signing: ours are its own, and its own are accepted."""

import json
import shutil
from pathlib import Path

import pytest
from model_signing import signing, verifying

from marship.errors import PackageError, SignatureError
from marship.trust import keys
from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust
from marship.trust.signature import beside, sign
from signed import make_key, trusting, write


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    """A P-256 key."""
    return make_key(tmp_path, openssf=True)


@pytest.fixture
def trust(tmp_path: Path, key: PrivateKey) -> Trust:
    """A folder that trusts it, and an Ed25519 key."""
    return trusting(tmp_path / "trust", make_key(tmp_path, "ours"), key)


def test_ours_pass_in_model_signing(tmp_path: Path, key: PrivateKey) -> None:
    """What `marship sign` writes with a P-256 key verifies there."""
    path = write(tmp_path / "lin.mar")
    sign(path, key)
    public = key.path.with_suffix(".pem")
    config = verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(path, beside(path))
    write(path, {})
    with pytest.raises(ValueError, match="mismatch"):
        config.verify(path, beside(path))


def test_its_own_pass_here(tmp_path: Path, key: PrivateKey, trust: Trust) -> None:
    """What model-signing writes verifies here, and names model, version and key."""
    path = write(tmp_path / "lin.mar")
    config = signing.Config().use_elliptic_key_signer(private_key=key.path)
    config.sign(path, beside(path))
    verified = trust.verify(path)
    assert (verified.contents.model, verified.key.id) == ("lin", key.id)


def test_a_key_with_a_passphrase_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase reaches model-signing."""
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "correct horse")
    pair = keys.generate("locked", tmp_path, openssf=True, passphrase="correct horse")
    key = keys.read_private(pair.private)
    path = write(tmp_path / "lin.mar")
    sign(path, key)
    trusting(tmp_path / "trust", key).verify(path)


def test_what_was_done_to_it_is_refused(tmp_path: Path, key: PrivateKey, trust: Trust) -> None:
    """Altered, renamed, truncated, of a strange key, and of a structure that readers disagree on.

    model-signing itself takes a renamed file, and does not look into it.
    """
    path = write(tmp_path / "lin.mar")
    sign(path, key)
    other = path.with_name("other.mar")
    shutil.copy(path, other)
    shutil.copy(beside(path), beside(other))
    with pytest.raises(SignatureError, match=r"signed under, 'lin\.mar'"):
        trust.verify(other)
    write(path, {"handler.py": b""})
    with pytest.raises(SignatureError, match=r"lin\.mar must be as it was signed, got: .*mismatch"):
        trust.verify(path)
    bundle = json.loads(beside(path).read_bytes())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    beside(path).write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="must be as it was signed"):
        trust.verify(path)
    sign(path, make_key(tmp_path, "stranger", openssf=True))
    with pytest.raises(SignatureError, match="with a key of the trust folder"):
        trust.verify(path)
    path.write_bytes(path.read_bytes() + b"more")
    config = signing.Config().use_elliptic_key_signer(private_key=key.path)
    config.sign(path, beside(path))
    with pytest.raises(PackageError, match="bytes behind its end"):
        trust.verify(path)


def test_a_bundle_without_a_local_key_is_refused(
    tmp_path: Path, key: PrivateKey, trust: Trust
) -> None:
    """One that Sigstore's public service signed says who signed, and not with which key."""
    path = write(tmp_path / "lin.mar")
    sign(path, key)
    bundle = json.loads(beside(path).read_bytes())
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}}
    beside(path).write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="must be made with a local key"):
        trust.verify(path)
