"""Archives from a server on loopback: in the store whole and signed, or not at all."""

import base64
import contextlib
import functools
import gzip
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from marship.cli import app
from marship.errors import MarshipError, PackageError, SignatureError, UsageError
from marship.storage import StorageError
from marship.trust import download
from marship.trust.policy import Trust
from marship.trust.signature import beside, sign
from signed import FILES, make_key, trusting, write
from small_disk import run_on


class Files(SimpleHTTPRequestHandler):
    """A folder; a path below /moved/ is redirected, one below /short/ ends early.

    Below /packed/ bodies are gzip, and below /long/ archives have 20 MB without a length.
    """

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
        elif self.path.startswith("/short/") and self.path.endswith(".mar"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"PK")
        elif self.path.startswith("/packed/"):
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(bytes(20_000_000)))
        elif self.path.startswith("/long/") and self.path.endswith(".mar"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(bytes(20_000_000))
        else:
            self.path = self.path.removeprefix("/short").removeprefix("/long")
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Remote:
    """A server's folder with a signed archive, and who would fetch it."""

    archive: Path
    url: str
    trust: Trust
    store: Path

    def fetch(self, path: str = "/lin.mar") -> None:
        """Fetch it."""
        download.fetch(self.url + path, self.trust, self.store)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    """Serve it."""
    folder = tmp_path / "remote"
    folder.mkdir()
    key = make_key(tmp_path)
    archive = write(folder / "lin.mar")
    sign(archive, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    Files.asked.clear()
    yield Remote(archive, url, trusting(tmp_path / "trust", key), tmp_path / "store")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("where", ["", "/moved"])
def test_a_signed_archive_is_kept(remote: Remote, where: str) -> None:
    """With its signature; by the command, too, which tells whose it is."""
    words = ["fetch", f"{remote.url}{where}/lin.mar", "--trust", str(remote.trust.folder)]
    done = CliRunner().invoke(app, [*words, "--model-store", str(remote.store)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "release.pem" in done.output
    kept = remote.store / "lin.mar"
    assert kept.read_bytes() == remote.archive.read_bytes()
    remote.trust.verify(kept)
    assert sorted(path.name for path in remote.store.iterdir()) == ["lin.mar", "lin.mar.sig"]


def altered(archive: Path) -> None:
    """One file is another."""
    write(archive, {**FILES, "handler.py": b"class Other: pass\n"})


def unsigned(archive: Path) -> None:
    """Nobody signed it."""
    beside(archive).unlink()


def of_another_key(archive: Path) -> None:
    """A key signed it that is not trusted."""
    sign(archive, make_key(archive.parent, "other"))


def gone(archive: Path) -> None:
    """Its signature is still there."""
    archive.unlink()


def none_at_all(archive: Path) -> None:
    """The signature is no signature."""
    beside(archive).write_bytes(b"<html>Not found</html>")


@pytest.mark.parametrize(
    ("spoil", "kind", "fault"),
    [
        (altered, SignatureError, "changed: handler.py"),
        (unsigned, SignatureError, "must be signed, got no signature at http"),
        (of_another_key, SignatureError, "must be signed with a key in"),
        (none_at_all, SignatureError, "lin.mar.sig must"),
        (gone, PackageError, "lin.mar must be answered with 200, got 404"),
    ],
)
def test_what_does_not_hold_leaves_the_store_as_it_was(
    remote: Remote, spoil: Callable[[Path], None], kind: type[MarshipError], fault: str
) -> None:
    """By the rules of files at hand; the archive that was there stays."""
    remote.store.mkdir()
    (remote.store / "lin.mar").write_bytes(b"old")
    spoil(remote.archive)
    with pytest.raises(kind, match=fault):
        remote.fetch()
    assert [path.name for path in remote.store.iterdir()] == ["lin.mar"]
    assert (remote.store / "lin.mar").read_bytes() == b"old"


def no_envelope(archive: Path) -> None:
    """The signature is JSON, and nothing else."""
    beside(archive).write_bytes(b"{}")


def of_a_strange_bundle(archive: Path) -> None:
    """An OpenSSF signature that names a key nobody pinned."""
    sign(archive, make_key(archive.parent, "stranger", openssf=True))


def with_another_size(archive: Path) -> None:
    """The statement has a larger size than what was signed."""
    value = json.loads(beside(archive).read_bytes())
    payload = base64.b64decode(value["payload"]).replace(b'"size_bytes":', b'"size_bytes":9')
    value["payload"] = base64.b64encode(payload).decode()
    beside(archive).write_text(json.dumps(value))


@pytest.mark.parametrize(
    "spoil",
    [unsigned, none_at_all, no_envelope, of_another_key, of_a_strange_bundle, with_another_size],
)
def test_nothing_is_asked_for_before_the_signature_holds(
    remote: Remote, spoil: Callable[[Path], None]
) -> None:
    """Who can answer at the URL fills no disk: of the archive not a byte is fetched."""
    spoil(remote.archive)
    with pytest.raises(SignatureError):
        remote.fetch()
    assert Files.asked == ["/lin.mar.sig"]


def test_no_more_comes_than_was_signed(remote: Remote) -> None:
    """An archive that goes on beyond its stated size is cut off there."""
    told: list[int] = []
    with pytest.raises(SignatureError, match=r"lin\.mar must have at most .*not what was signed"):
        download.fetch(
            f"{remote.url}/long/lin.mar", remote.trust, remote.store, lambda n, _: told.append(n)
        )
    assert told == []
    assert list(remote.store.iterdir()) == []


def test_a_size_that_no_signature_states_has_a_bound(remote: Remote, tmp_path: Path) -> None:
    """OpenSSF's states none; up to the bound its archives are fetched."""
    key = make_key(tmp_path, "oms", openssf=True)
    trust = trusting(tmp_path / "curves", key)
    sign(remote.archive, key)
    size = remote.archive.stat().st_size
    url = f"{remote.url}/lin.mar"
    with pytest.raises(PackageError, match=f"at most {size - 1:,} bytes, got {size:,}. Copy"):
        download.fetch(url, trust, remote.store, most_unstated_bytes=size - 1)
    assert download.fetch(url, trust, remote.store, most_unstated_bytes=size).path.is_file()


def test_a_packed_body_is_refused(remote: Remote) -> None:
    """It was asked for as it is; unpacked, a small answer would be a large one."""
    with pytest.raises(PackageError, match=r"lin\.mar\.sig must be sent as .* gzip"):
        remote.fetch("/packed/lin.mar")


def test_a_folder_in_a_files_place_is_told(remote: Remote) -> None:
    """Where a signature shall lie, in the store or beside an archive; neither file has moved."""
    place = remote.store / "lin.mar.sig"
    place.mkdir(parents=True)
    with pytest.raises(StorageError, match=r"lin\.mar\.sig must be a file, got a folder"):
        remote.fetch()
    assert list(remote.store.iterdir()) == [place]
    write(remote.store / "lin.mar")
    with pytest.raises(SignatureError, match=r"must be a signature's file, got: Is a directory"):
        remote.trust.verify(remote.store / "lin.mar")


def test_a_body_that_ends_early_or_is_too_long(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is kept: a cut line, and a signature that would fill the disk."""
    with pytest.raises(PackageError, match=r"must be fetched whole, got: an end before"):
        remote.fetch("/short/lin.mar")
    size = beside(remote.archive).stat().st_size
    monkeypatch.setattr(download, "MOST_SIGNATURE_BYTES", size - 1)
    with pytest.raises(StorageError, match=f"at most {size - 1:,} bytes, got {size:,}"):
        remote.fetch()
    assert list(remote.store.iterdir()) == []


@pytest.mark.skipif(
    os.geteuid() != 0, reason="in a user namespace of one's own, root's folders are a stranger's"
)
def test_a_disk_without_room_is_told(remote: Remote) -> None:
    """Before anything of the archive is written; one line says where to free some."""
    words = '"$1" -m marship fetch "$2" --trust "$3" --model-store "$0" && exit; ls -A "$0"'
    url = f"{remote.url}/lin.mar"
    done = run_on(remote.store, 8, words, sys.executable, url, remote.trust.folder)
    assert f"Free some space in {remote.store}." in done.stderr, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "wrong",
    [
        *("file:///x/lin.mar", "ftp://x/lin.mar", "http://x/lin", "lin.mar"),
        *(
            "http://x/%2e%2flin.mar?y",
            "http://x/lin.mar?",
            "http://x/lin.mar#x",
            "http://x/lin.mar#",
        ),
    ],
)
def test_what_is_no_url_of_an_archive(remote: Remote, wrong: str) -> None:
    """One line says what it must look like; nothing is written."""
    with pytest.raises(UsageError, match=r"must be http\(s\)://\.\.\./NAME\.mar"):
        download.fetch(wrong, remote.trust, remote.store)
    assert not remote.store.exists()


def test_nobody_there_is_one_line(remote: Remote) -> None:
    """A port where nobody listens."""
    with pytest.raises(PackageError, match=r"^http://\S+/lin\.mar\.sig must .* refused\."):
        download.fetch("http://127.0.0.1:9/lin.mar", remote.trust, remote.store)
