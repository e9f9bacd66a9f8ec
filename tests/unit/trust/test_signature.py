"""A signed archive passes; whatever was done to it since is refused, and told by name."""

import base64
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import PackageError, SignatureError, UsageError
from marship.packaging import configure
from marship.packaging.step import PackageSettings, package
from marship.trust import envelope
from marship.trust.contents import MANIFEST_FILE
from marship.trust.contents import read as read_contents
from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust
from marship.trust.signature import beside, sign
from marship.trust.statement import Statement
from signed import FILES, make_key, trusting, write


@pytest.fixture
def mar(tmp_path: Path, key: PrivateKey) -> Path:
    """A signed archive."""
    path = write(tmp_path / "lin.mar")
    sign(path, key)
    return path


def refused(trust: Trust, archive: Path, fault: str) -> None:
    """The archive is refused for this reason, as an error of its own kind."""
    with pytest.raises(SignatureError, match=fault) as caught:
        trust.verify(archive)
    assert caught.value.code == "signature"


def test_a_signed_archive_passes_and_is_unchanged(tmp_path: Path, key: PrivateKey) -> None:
    """Signing writes one file beside it, the same for the same archive and key."""
    path = write(tmp_path / "lin.mar")
    before = path.read_bytes()
    sign(path, key)
    first = beside(path).read_bytes()
    assert sign(path, key).path.read_bytes() == first
    assert path.read_bytes() == before
    verified = trusting(tmp_path / "trust", make_key(tmp_path, "other"), key).verify(path)
    assert (verified.contents.model, verified.contents.version) == ("lin", "1.0")
    assert verified.key.id == key.id


def test_the_signature_is_a_dsse_envelope(mar: Path, key: PrivateKey) -> None:
    """Type, payload in canonical JSON, and a signature over DSSE's encoding of both."""
    value = json.loads(beside(mar).read_bytes())
    payload = base64.b64decode(value["payload"])
    kind = "application/vnd.marship.trust.archive.v1+json"
    assert value["payloadType"] == kind
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (one,) = value["signatures"]
    key.raw.public_key().verify(base64.b64decode(one["sig"]), signed)
    statement = json.loads(payload)
    assert statement["archive"]["name"] == "lin.mar"
    assert statement["model"] == {"name": "lin", "version": "1.0"}
    assert (statement["algorithm"], statement["format"]) == ("ed25519", 1)
    assert statement["key"] == one["keyid"] == key.id
    assert set(statement["files"]) == {*FILES, MANIFEST_FILE}
    assert b" " not in payload


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({**FILES, "model.onnx": FILES["model.onnx"][:-1] + b"!"}, r"got changed: model\.onnx\."),
        ({**FILES, "handler.py": b"class Evil: pass\n"}, r"got changed: handler\.py\."),
        ({**FILES, "sitecustomize.py": b""}, r"got added: sitecustomize\.py\."),
        ({"handler.py": FILES["handler.py"]}, r"got removed: model\.onnx\."),
        (
            {"handler.py": b"", "new": b""},
            r"changed: handler\.py; added: new; removed: model\.onnx",
        ),
        (dict(reversed(FILES.items())), "got the same files packed in another way"),
    ],
)
def test_a_change_is_reported_with_its_file(
    mar: Path, trust: Trust, files: dict[str, bytes], fault: str
) -> None:
    """A changed byte, a swapped handler, an added and a removed file, another order."""
    refused(trust, write(mar, files), fault)


def test_another_compression_is_another_archive(mar: Path, trust: Trust) -> None:
    """The signature binds the zip's own bytes, not only what they unpack to."""
    refused(trust, write(mar, deflate=True), "packed in another way")


def test_a_folder_that_was_added_is_noticed(mar: Path, trust: Trust) -> None:
    """It has no digest of its own, but the archive has."""
    with zipfile.ZipFile(mar, "a") as zipped:
        zipped.mkdir("empty")
    refused(trust, mar, "packed in another way")


def test_a_structure_that_readers_disagree_on_is_refused_signed_or_not(
    tmp_path: Path, mar: Path, key: PrivateKey, trust: Trust
) -> None:
    """Such an archive is neither signed nor verified."""
    with zipfile.ZipFile(mar, "a") as zipped, pytest.warns(UserWarning, match="Duplicate"):
        zipped.writestr("handler.py", b"class Evil: pass\n")
    with pytest.raises(PackageError, match=r"handler\.py twice"):
        trust.verify(mar)
    with pytest.raises(PackageError, match=r"handler\.py twice"):
        sign(mar, key)
    with pytest.raises(PackageError, match="an entry with path traversal"):
        sign(write(tmp_path / "x.mar", {"../x": b""}), key)


def test_a_renamed_archive_is_refused(mar: Path, trust: Trust) -> None:
    """With its signature renamed as well."""
    other = mar.with_name("recommend.mar")
    shutil.copy(beside(mar), beside(other))
    refused(trust, mar.rename(other), r"name that it was signed under, lin\.mar")


def test_a_signature_of_another_model_is_refused(
    tmp_path: Path, mar: Path, key: PrivateKey, trust: Trust
) -> None:
    """By the same key, for another archive."""
    other = write(tmp_path / "other.mar", model="other")
    sign(other, key)
    shutil.copy(beside(other), beside(mar))
    refused(trust, mar, r"signature of its own, got that of other\.mar, model other 1\.0")


def test_an_older_version_is_no_other_one(mar: Path, key: PrivateKey, trust: Trust) -> None:
    """An archive put in place of a newer one does not go with the newer one's signature."""
    write(mar, version="0.9")
    refused(trust, mar, rf"changed: {MANIFEST_FILE}")
    sign(mar, key)
    assert trust.verify(mar).contents.version == "0.9"


def test_an_unsigned_archive_is_refused(mar: Path, trust: Trust) -> None:
    """The message says which file is missing."""
    beside(mar).unlink()
    refused(trust, mar, r"lin\.mar must be signed, got no lin\.mar\.sig beside it")


def test_a_key_that_is_not_trusted_is_refused(tmp_path: Path, mar: Path, trust: Trust) -> None:
    """Its id is told; so is a trusted key's id on another key's signature."""
    stranger = make_key(tmp_path, "stranger")
    sign(mar, stranger)
    refused(trust, mar, f"must be signed with a key in .*, got one of key '{stranger.id[:16]}'")
    text = beside(mar).read_text().replace(stranger.id, trust.keys[0].id)
    beside(mar).write_text(text)
    refused(trust, mar, "got one that does not verify")


def changed(part: str) -> Callable[[dict[str, object]], None]:
    """Take the last byte from a part of an envelope."""

    def change(value: dict[str, object]) -> None:
        holder = value if part == "payload" else value["signatures"][0]  # type: ignore[index]
        data = base64.b64decode(holder[part])
        holder[part] = base64.b64encode(data[:-1]).decode()

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed("sig"), "does not verify"),
        (changed("payload"), "does not verify"),
        (lambda value: value.update(payloadType="text/plain"), "signature of an archive, got"),
        (lambda value: value.update(signatures=[]), "must be a whole signature"),
        (lambda value: value["signatures"].append(value["signatures"][0]), "whole signature"),
        (lambda value: value.update(payload="???"), "must be a whole signature"),
    ],
)
def test_a_damaged_envelope_is_refused(
    mar: Path, trust: Trust, change: Callable[[dict[str, object]], None], fault: str
) -> None:
    """A truncated signature or payload, another type, none, two, no base64."""
    value = json.loads(beside(mar).read_bytes())
    change(value)
    beside(mar).write_text(json.dumps(value))
    refused(trust, mar, fault)


@pytest.mark.parametrize("kept", [0, 1, 100, -3])
def test_a_truncated_file_is_refused(mar: Path, trust: Trust, kept: int) -> None:
    """Wherever it ends."""
    beside(mar).write_bytes(beside(mar).read_bytes()[:kept])
    refused(trust, mar, "must be a whole signature, got a damaged one")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace(b'"format":1', b'"format":2'), "must be of format 1, got 2"),
        (lambda text: text.replace(b'"format":1', b'"format": 1'), "one of marship's"),
        (lambda text: text.replace(b'"format":1', b'"format":1,"x":0'), "one of marship's"),
        (lambda text: text.replace(b'"archive":{', b'"archive":{},"archive":{'), "one of marship"),
        (lambda _: b"[]", "one of marship's"),
    ],
)
def test_a_statement_has_one_form(
    mar: Path, key: PrivateKey, trust: Trust, change: Callable[[bytes], bytes], fault: str
) -> None:
    """Even a trusted key's statement is read in its only form, so that it has one meaning."""
    payload = change(Statement(mar.name, read_contents(mar), key.id).to_bytes())
    signature = key.raw.sign(envelope.encoded(payload))  # type: ignore[call-arg]
    beside(mar).write_bytes(envelope.Envelope(payload, key.id, signature).to_bytes())
    refused(trust, mar, fault)


def test_a_trust_folder_must_be_fit_to_trust(tmp_path: Path, key: PrivateKey) -> None:
    """There, with keys, without private ones, and not writable by others."""
    with pytest.raises(UsageError, match="must be a folder of public keys"):
        Trust.load(tmp_path / "none")
    folder = tmp_path / "trust"
    folder.mkdir(mode=0o700)
    with pytest.raises(UsageError, match=r"must hold public keys, got no \.pem"):
        Trust.load(folder)
    pinned = folder / "release.pem"
    shutil.copy(key.path.with_suffix(".pem"), pinned)
    for path in (folder, pinned):
        mode = path.stat().st_mode
        path.chmod(mode | 0o020)
        with pytest.raises(
            UsageError,
            match=f"trust folder must be writable by its owner alone, .* chmod go-w {path}$",
        ):
            Trust.load(folder)
        path.chmod(mode)
    assert Trust.load(folder).keys[0].id == key.id
    (folder / "gone.pem").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"must be there, got \S+/gone\.pem: No such file"):
        Trust.load(folder)
    (folder / "gone.pem").unlink()
    shutil.copy(key.path, folder / "oops.pem")
    (folder / "oops.pem").chmod(0o600)
    with pytest.raises(UsageError, match="got a private one"):
        Trust.load(folder)


def test_a_configured_archive_must_be_signed_again(
    linear_onnx: Path, tmp_path: Path, key: PrivateKey, trust: Trust
) -> None:
    """`marship configure` changes a file, and the old signature says which."""
    path = package(linear_onnx, PackageSettings(model_store=tmp_path, name="lin"))
    sign(path, key)
    assert trust.verify(path).contents.model == "lin"
    configure.configure(path, ["review=0.4"])
    refused(trust, path, r"got changed: model-config\.yaml\.")
    sign(path, key)
    trust.verify(path)


def test_the_commands_sign_and_verify(mar: Path, key: PrivateKey, trust: Trust) -> None:
    """`sign` writes beside the archive, `verify` says OK, model, version and key, or why not."""
    beside(mar).unlink()
    done = CliRunner().invoke(app, ["sign", str(mar), "--key", str(key.path)])
    assert done.exit_code == 0, done.output
    told = CliRunner().invoke(app, ["verify", str(mar), "--trust", str(trust.folder)])
    assert told.exit_code == 0
    for fact in ("lin 1.0", key.id[:16], "release.pem", "OK"):
        assert fact in told.stdout
    write(mar, {"handler.py": b""})
    failed = CliRunner().invoke(app, ["verify", str(mar), "--trust", str(trust.folder)])
    assert isinstance(failed.exception, SignatureError)
    assert "OK" not in failed.stdout
    with pytest.raises(UsageError, match=r"what is signed must be a \.mar file"):
        sign(mar.with_suffix(".zip"), key)
