"""Keys are files that nobody overwrites, and private ones are for their owner only."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import UsageError
from marship.trust import keys


def test_a_key_is_two_files_in_standard_forms(tmp_path: Path) -> None:
    """PKCS8 for its owner only, SubjectPublicKeyInfo for all; the id is of the raw key."""
    pair = keys.generate("release", tmp_path / "new")
    assert pair.private.stat().st_mode & 0o777 == 0o600
    assert pair.private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    public = serialization.load_pem_public_key(pair.public.read_bytes())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    assert pair.id == hashlib.sha256(public.public_bytes_raw()).hexdigest()
    assert keys.read_private(pair.private).id == keys.read_public(pair.public).id == pair.id


@pytest.mark.parametrize("suffix", [".key", ".pem"])
def test_no_key_is_overwritten(tmp_path: Path, suffix: str) -> None:
    """Neither file, and nothing is written then."""
    taken = tmp_path / f"release{suffix}"
    taken.write_text("precious")
    with pytest.raises(UsageError, match=f"release{suffix} must be a new file"):
        keys.generate("release", tmp_path)
    assert taken.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message names the mode and the remedy."""
    private = keys.generate("release", tmp_path).private
    private.chmod(mode)
    with pytest.raises(UsageError, match=f"owner only, got mode {mode:o}.*chmod 600"):
        keys.read_private(private)


def test_a_passphrase_locks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the environment; a wrong one and none are told, and it is never shown."""
    private = keys.generate("release", tmp_path, passphrase="correct horse").private
    assert b"ENCRYPTED" in private.read_bytes()
    with pytest.raises(UsageError, match="passphrase must be known, got none"):
        keys.read_private(private)
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "wrong horse")
    with pytest.raises(UsageError, match="must open with its passphrase"):
        keys.read_private(private)
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "correct horse")
    assert "horse" not in repr(keys.read_private(private))


def test_a_private_key_is_no_public_one(tmp_path: Path) -> None:
    """A private key in a trust folder would travel to servers."""
    pair = keys.generate("release", tmp_path)
    with pytest.raises(UsageError, match="must be a public key, got a private one"):
        keys.read_public(pair.private)
    pair.public.chmod(0o600)
    with pytest.raises(UsageError, match="must hold a private"):
        keys.read_private(pair.public)


@pytest.mark.parametrize("text", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_what_is_no_key_is_reported(tmp_path: Path, text: bytes) -> None:
    """For both kinds of file."""
    path = tmp_path / "x"
    path.write_bytes(text)
    path.chmod(0o600)
    for kind in (keys.read_private, keys.read_public):
        with pytest.raises(UsageError, match="key in PEM, got something else"):
            kind(path)
    with pytest.raises(UsageError, match="readable key, got: No such file"):
        keys.read_public(tmp_path / "none")


def test_other_curves_are_refused(tmp_path: Path) -> None:
    """A curve that model-signing does not accept is not used for signing."""
    path = tmp_path / "x.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256K1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(UsageError, match="Ed25519 or a P-256 key, got secp256k1"):
        keys.read_public(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_keys_name_is_a_file_name(tmp_path: Path, name: str) -> None:
    """It leads nowhere else."""
    with pytest.raises(UsageError, match="a key's name must be letters"):
        keys.generate(name, tmp_path)


def test_keygen_tells_what_goes_where(tmp_path: Path) -> None:
    """The command prints both files and the short id; a second call overwrites nothing."""
    told = CliRunner().invoke(app, ["keygen", "release", "--out", str(tmp_path)])
    short = keys.read_public(tmp_path / "release.pem").id[: keys.SHORT_ID]
    assert told.exit_code == 0
    assert short in told.stdout
    again = CliRunner().invoke(app, ["keygen", "release", "--out", str(tmp_path)])
    assert isinstance(again.exception, UsageError)
