"""Archives from a server on loopback: in the store whole and signed, or not at all."""

import base64
import contextlib
import functools
import gzip
import json
import os
import re
import shutil
import socket
import ssl
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
from marship.errors import MarshipError, PackageError, SignatureError, StorageError, UsageError
from marship.operate import certificate
from marship.trust import download
from marship.trust.policy import Trust
from marship.trust.signature import beside, sign
from signed import FILES, make_key, trusting, write
from small_disk import run_on
from stranger import Send, Stranger, drips, floods, sends


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
        (gone, PackageError, "lin.mar must respond with 200, got 404"),
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
def test_nothing_is_downloaded_before_the_signature_holds(
    remote: Remote, spoil: Callable[[Path], None]
) -> None:
    """Whoever responds at the URL cannot fill the disk: of the archive not a byte is fetched."""
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
    assert not remote.store.exists()


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
    """It was requested without encoding; unpacked, a small response would be a large one."""
    with pytest.raises(PackageError, match=r"lin\.mar\.sig must be sent as .* 'gzip'"):
        remote.fetch("/packed/lin.mar")


def test_a_folder_in_a_files_place_is_reported(remote: Remote) -> None:
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
    assert not remote.store.exists()


@pytest.mark.skipif(
    os.geteuid() != 0, reason="in a user namespace of one's own, root's folders are a stranger's"
)
def test_a_disk_without_room_is_reported(remote: Remote) -> None:
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
        *("http:///lin.mar", "http://[::1/lin.mar", "http://[::x]:1/lin.mar", "http://x:y/lin.mar"),
        *("ftp://bob:SECRET@x/lin.mar", "http://bob:SEC/RET@x/lin.mar", "bob:SECRET@x/lin.mar"),
    ],
)
def test_what_is_no_url_of_an_archive(remote: Remote, wrong: str) -> None:
    """One line says what it must look like; nothing is written, and no password told."""
    with pytest.raises(UsageError, match=r"must be http\(s\)://\.\.\./NAME\.mar") as caught:
        download.fetch(wrong, remote.trust, remote.store)
    assert not remote.store.exists()
    assert not re.search("bob|SEC", str(caught.value))


@pytest.fixture
def stranger() -> Iterator[Callable[..., str]]:
    """Start a server that sends what it is told; the URL of an archive there."""
    started: list[Stranger] = []

    def run(send: Send, tls: ssl.SSLContext | None = None) -> str:
        started.append(Stranger(send, tls, body=b""))
        return f"{started[-1].url}/lin.mar"

    yield run
    for one in started:
        one.close()


def failed(remote: Remote, url: str) -> str:
    """The error of a fetch; nothing of it is left, nor the store that it made."""
    with pytest.raises(MarshipError) as caught:
        download.fetch(url, remote.trust, remote.store)
    assert not remote.store.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"SSH-2.0\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        b"HTTP/1.1 500 Fault\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://eve:SECRET@x y/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ftp://eve:SECRET@x/lin.mar\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /lin.mar\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n",
    ],
)
def test_no_error_tells_a_password(
    remote: Remote, stranger: Callable[..., str], answer: bytes
) -> None:
    """Errors are logged; the reason is what happened, without Python's names for it."""
    error = failed(remote, stranger(sends(answer)).replace("http://", "http://bob:SECRET@"))
    assert "lin.mar" in error
    assert not re.search(r"bob|SECRET|Error\(", error)


MOVED = b"HTTP/1.1 302 Found\r\nLocation: /lin.mar.sig\r\n"
FOUND = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("packed", [b"", b"Content-Encoding: gzip\r\n"])
def test_a_redirects_body_is_not_read(
    remote: Remote, stranger: Callable[..., str], packed: bytes
) -> None:
    """It has no end, and the redirects lead nowhere: at the eleventh it is over."""
    sent: list[int] = []

    def send(line: socket.socket, over: threading.Event) -> None:
        line.sendall(MOVED + packed + b"\r\n")
        while not over.is_set():
            sent.append(line.send(gzip.compress(bytes(1 << 16)) if packed else bytes(1 << 16)))

    error = failed(remote, stranger(send))
    assert "more than 10 redirects" in error
    assert sum(sent) < 11 * (8 << 20)  # what sockets hold


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(remote: Remote, stranger: Callable[..., str], status: int) -> None:
    """To another server, by any of the statuses."""
    target = f"{remote.url}/lin.mar.sig".encode()
    url = stranger(sends(b"HTTP/1.1 %d x\r\nLocation: %b\r\n\r\n" % (status, target)))
    with download._Session() as session, session.found(f"{url}.sig") as answer:
        assert answer.content == beside(remote.archive).read_bytes()


@pytest.mark.parametrize(
    "target",
    [
        b"ftp://127.0.0.1/x",
        b"file:///etc/passwd",
        b"http://[",
        b"//\xff:x",
        b"http://a b",
    ],
)
def test_a_redirect_elsewhere_is_one_line(
    remote: Remote, stranger: Callable[..., str], target: bytes
) -> None:
    """What is no address of HTTP is not followed."""
    error = failed(remote, stranger(sends(b"HTTP/1.1 302 x\r\nLocation: " + target + b"\r\n\r\n")))
    assert "must be fetched whole, got: " in error


@pytest.mark.parametrize(
    "length",
    [b"\xb2", b"9" * 5000, b"-1", b"+5", b"5_0", b"0x5", b"5, 5", b"five", b"\xd9\xa5", b"1e9"],
)
def test_a_length_that_is_none_is_one_line(
    remote: Remote, stranger: Callable[..., str], length: bytes
) -> None:
    """Digits alone, and no more than a disk has."""
    head = FOUND + b"Content-Length: " + length + b"\r\n\r\n"
    error = failed(remote, stranger(sends(head, b"hello")))
    assert "must state its length in digits, got" in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("begins", "drop"),
    [
        (b"", b"H"),
        (FOUND + b"X-A: ", b"a"),
        (FOUND + b"Content-Length: 99999\r\n\r\n", b"1"),
        (FOUND + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n1\r\n"),
        (FOUND + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (FOUND + b"\r\n", b"1"),
    ],
)
def test_a_download_that_drips_is_given_up(
    remote: Remote,
    stranger: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    begins: bytes,
    drop: bytes,
) -> None:
    """Wherever the bytes come one by one; nothing of it is left."""
    monkeypatch.setattr(download, "WINDOW_S", 0.3)
    assert "less than 64 KiB in 0.3 s" in failed(remote, stranger(drips(begins, drop)))


def test_tls_has_the_same_bounds(
    remote: Remote, stranger: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over it a signature is fetched, and a server that drips is given up."""
    chain, key = certificate.self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    url = stranger(drips(FOUND + b"Content-Length: 99999\r\n\r\n", b"1"), tls)
    assert "got: self-signed certificate. Use a name that" in failed(remote, url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(chain))
    with download._Session() as session:
        fine = stranger(sends(FOUND + b"Content-Length: 2\r\n\r\nok"), tls)
        remote.store.mkdir()
        download._save(session, fine, remote.store / "x", download._Limit(2, "", PackageError))
    assert (remote.store / "x").read_bytes() == b"ok"
    shutil.rmtree(remote.store)
    monkeypatch.setattr(download, "WINDOW_S", 1.5)
    assert "less than 64 KiB in 1.5 s" in failed(remote, url)


@pytest.mark.parametrize("drop", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X-A: a\r\n"])
def test_endless_headers_are_one_line(
    remote: Remote, stranger: Callable[..., str], drop: bytes
) -> None:
    """They end by their number or by their bytes."""
    begins = b"" if drop.startswith(b"HTTP") else FOUND
    assert failed(remote, stranger(floods(begins, drop))).startswith("http://127.0.0.1:")


def test_a_slow_download_that_goes_on_is_kept(
    remote: Remote, stranger: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk has a window of its own: all of them may take longer."""
    monkeypatch.setattr(download, "WINDOW_S", 0.6)

    def send(line: socket.socket, over: threading.Event) -> None:
        line.sendall(FOUND + b"\r\n")
        for _ in range(5):
            line.sendall(bytes(download._CHUNK_BYTES))
            over.wait(0.25)

    with download._Session() as session:
        limit = download._Limit(1 << 20, "", PackageError)
        remote.store.mkdir()
        download._save(session, stranger(send), remote.store / "x", limit)
    assert (remote.store / "x").stat().st_size == 5 * download._CHUNK_BYTES


def test_ctrl_c_leaves_nothing(remote: Remote) -> None:
    """In the middle of the archive."""

    def interrupt(_there: int, _size: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.fetch(f"{remote.url}/lin.mar", remote.trust, remote.store, interrupt)
    assert not remote.store.exists()


def test_a_proxy_of_the_environment_counts(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the whole address, over a limited connection."""
    proxy = Stranger(sends(b"HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n"), body=b"")
    monkeypatch.setenv("http_proxy", proxy.url)
    with pytest.raises(SignatureError, match=r"got no signature at http://models\.example"):
        download.fetch("http://models.example/lin.mar", remote.trust, remote.store)
    assert proxy.received.startswith(b"GET http://models.example/lin.mar.sig HTTP/1.1\r\n")
    proxy.close()


def test_nobody_there_is_one_line(remote: Remote) -> None:
    """A port where nobody listens."""
    with pytest.raises(PackageError, match=r"^http://\S+/lin\.mar\.sig must .* refused\."):
        download.fetch("http://127.0.0.1:9/lin.mar", remote.trust, remote.store)
