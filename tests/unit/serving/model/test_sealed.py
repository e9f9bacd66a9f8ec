"""A sealed file opens as it was, with its key, in its place; anything else is refused."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.errors import SealError
from marship.serving.model import keysource, sealed
from marship.serving.model.sealed import Sealer, wrapped

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
BOUND = sealed.binding("model", "1.0", "file.sealed")
CHUNK = 16


def sealed_bytes(folder: Path, plain: bytes, key: bytes = KEY) -> bytes:
    """What `Sealer` writes, in small chunks."""
    sealer = Sealer(key, "model", "1.0")
    return sealer.write(folder, "file", io.BytesIO(plain), chunk_bytes=CHUNK).read_bytes()


def opened(data: bytes, key: bytes = KEY, bound: bytes = BOUND) -> bytes:
    """The plain bytes."""
    header = sealed.SealHeader.parse(data[: sealed.HEADER_BYTES], "file.sealed")
    data_key = sealed.unwrap(header, key, bound, "file.sealed")
    return sealed.decrypt(io.BytesIO(data), data_key, bound, "file.sealed").tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that examples share."""
    return tmp_path_factory.mktemp("sealed")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """A sealed file of four chunks, the last one shorter."""
    return sealed_bytes(folder, bytes(range(3 * CHUNK + 5)))


@given(plain=st.binary(max_size=5 * CHUNK))
def test_what_is_sealed_opens_as_it_was(folder: Path, plain: bytes) -> None:
    """Of any size, none and whole chunks among them; the form's size is as computed."""
    data = sealed_bytes(folder, plain)
    assert opened(data) == plain
    assert len(data) == sealed.SealHeader.parse(data, "").file_bytes()


def test_the_form_is_the_documented_one(whole: bytes) -> None:
    """Magic, chunk size and size stand where the docstring says, and chunks begin at 111."""
    assert whole[:8] == b"marship\x01"
    assert int.from_bytes(whole[8:12], "big") == CHUNK
    assert int.from_bytes(whole[12:20], "big") == 3 * CHUNK + 5
    assert whole[43:51] == sealed.key_name(KEY)
    assert len(whole) == 111 + 3 * CHUNK + 5 + 4 * 16
    header = sealed.SealHeader.parse(whole, "")
    assert header.pack() == whole[:111]
    assert [nonce[7:].hex() for _, nonce in header.chunks()] == [
        "0000000000",
        "0000000100",
        "0000000200",
        "0000000301",
    ]


@given(data=st.data())
def test_any_flipped_bit_is_refused(whole: bytes, data: st.DataObject) -> None:
    """Wherever it stands: header, wrapped key, chunk or tag."""
    altered = bytearray(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    altered[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealError):
        opened(bytes(altered))


def test_every_flipped_byte_is_refused(whole: bytes) -> None:
    """No byte of an envelope is without effect."""
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0xFF
        with pytest.raises(SealError):
            opened(bytes(altered))


def test_every_truncation_and_any_tail_is_refused(whole: bytes) -> None:
    """A file that is shorter by any number of bytes, or longer, does not open."""
    for size in range(len(whole)):
        with pytest.raises(SealError):
            opened(whole[:size])
    with pytest.raises(SealError, match="must have its"):
        opened(whole + b"\0")


@given(order=st.permutations(range(3)))
def test_any_order_of_chunks_but_the_true_one_is_refused(whole: bytes, order: list[int]) -> None:
    """Whole chunks with their tags, moved: each is bound to its number."""
    step = CHUNK + 16
    chunks = [whole[111 + i * step : 111 + (i + 1) * step] for i in range(3)]
    data = whole[:111] + b"".join(chunks[i] for i in order) + whole[111 + 3 * step :]
    if order == [0, 1, 2]:
        assert opened(data) == bytes(range(3 * CHUNK + 5))
    else:
        with pytest.raises(SealError, match="another chunk"):
            opened(data)


def test_chunks_cannot_be_dropped_by_who_alters_the_size(whole: bytes) -> None:
    """The size stands in the header; one that says less fails with the wrapped key."""
    shorter = whole[:12] + (3 * CHUNK).to_bytes(8, "big") + whole[20 : 111 + 3 * (CHUNK + 16)]
    with pytest.raises(SealError, match="altered"):
        opened(shorter)


def test_a_beginning_is_not_the_whole_even_with_the_key(whole: bytes) -> None:
    """Where the operator key itself wraps a smaller size, the chunks still refuse."""
    header = sealed.SealHeader.parse(whole, "")
    data_key = sealed.unwrap(header, KEY, BOUND, "")
    shorter = wrapped(replace(header, size_bytes=3 * CHUNK), data_key, KEY, BOUND)
    with pytest.raises(SealError, match="another chunk 0"):
        opened(shorter.pack() + whole[111 : 111 + 3 * (CHUNK + 16)])


def test_another_key_is_named_and_learns_nothing_more(whole: bytes) -> None:
    """The message has the names of both keys and neither key."""
    with pytest.raises(SealError, match="must be opened with the key") as caught:
        opened(whole, OTHER_KEY)
    assert sealed.key_name(KEY).hex() in str(caught.value)
    assert sealed.key_name(OTHER_KEY).hex() in str(caught.value)
    assert KEY.hex() not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        ("other", "1.0", "file.sealed"),
        ("model", "1.1", "file.sealed"),
        ("model", "1.0", "else.sealed"),
        ("model1", ".0", "file.sealed"),
    ],
)
def test_another_place_is_refused(whole: bytes, place: tuple[str, str, str]) -> None:
    """A sealed file opens for its model, its version and its path alone."""
    with pytest.raises(SealError, match="for this model, version and place"):
        opened(whole, bound=sealed.binding(*place))


def test_the_same_file_sealed_twice_has_nothing_in_common(folder: Path) -> None:
    """Data keys, prefixes and sealings are random."""
    first, second = (sealed_bytes(folder, bytes(CHUNK)) for _ in range(2))
    assert first[20:43] != second[20:43]
    assert first[51:] != second[51:]


def test_a_missing_library_is_named(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sealed models need it, so a host may lack it."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SealError, match="pip install cryptography"):
        opened(whole)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An extracted archive with two files sealed together."""
    (tmp_path / "MAR-INF").mkdir()
    manifest = {"model": {"modelName": "model", "modelVersion": "1.0"}}
    (tmp_path / sealed.MANIFEST_FILE).write_text(json.dumps(manifest))
    sealer = Sealer(KEY, "model", "1.0")
    for name in ("a", "b"):
        sealer.write(tmp_path, name, io.BytesIO(name.encode()))
    return tmp_path


def test_files_of_two_sealings_do_not_mix(archive: Path) -> None:
    """A file of another build of the same model and version is refused beside these."""
    opener = sealed.Opener(archive, "model", "1.0", KEY)
    assert opener.open("a").tobytes() == b"a"
    Sealer(KEY, "model", "1.0").write(archive, "b", io.BytesIO(b"b"))
    with pytest.raises(SealError, match="sealed together"):
        opener.open("b")


def test_what_was_opened_opens_again_without_the_operators_key(archive: Path) -> None:
    """Neither another file does, nor one that was sealed anew since; no attribute has the key."""
    opener = sealed.Opener(archive, "model", "1.0", KEY)
    opener.open("a")
    opener.forget_key()
    assert opener.open("a").tobytes() == b"a"
    assert KEY not in vars(opener).values()
    with pytest.raises(SealError, match="before the key is forgotten"):
        opener.open("b")
    altered = bytearray((archive / "a.sealed").read_bytes())
    altered[-1] ^= 1
    (archive / "a.sealed").write_bytes(altered)
    with pytest.raises(SealError, match="as it was sealed"):
        opener.open("a")


def test_a_plain_file_is_no_way_around(archive: Path) -> None:
    """Where a sealed file is missing, a plain one of its name is not taken."""
    (archive / "b.sealed").unlink()
    (archive / "b").write_bytes(b"b")
    with pytest.raises(SealError, match=r"b\.sealed must be in an archive"):
        sealed.Opener(archive, "model", "1.0", KEY).open("b")


def test_without_a_key_a_sealed_archive_has_no_vault(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how the server is told."""
    monkeypatch.delenv(keysource.SOURCE_VARIABLE, raising=False)
    code = (
        "import pathlib, sys; from marship.serving.model import sealed; "
        "sealed.opener(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "marship.errors.SealError: MARSHIP_SEAL_KEY must name" in done.stderr
    assert "--seal-key" in done.stderr


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"model": {"modelName": "m"}}'])
def test_a_sealed_archive_without_its_model_in_the_manifest_is_refused(
    archive: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and version are part of what was sealed."""
    monkeypatch.setenv(keysource.SOURCE_VARIABLE, "env:MY_KEY")
    manifest = archive / sealed.MANIFEST_FILE
    manifest.parent.mkdir(exist_ok=True)
    manifest.unlink(missing_ok=True)
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(SealError, match="must name the model"):
        sealed.opener(archive)


WORKER = """
import os, pathlib, sys
from marship.serving.model import sealed
folder = pathlib.Path(sys.argv[1])
opener = sealed.opener(folder)
import ctypes, resource
print(opener.open("a").tobytes().decode() if opener else "plain")
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
print(sorted(n for n in os.environ if n in ("SECRET", "MARSHIP_SEAL_KEY")))
print(pathlib.Path("/proc/self/environ").read_bytes().count(os.fsencode(sys.argv[2])))
"""


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_worker_forgets_the_key_in_its_environment(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, is_sealed: bool
) -> None:
    """Neither os.environ nor /proc/self/environ holds it, whether the model is sealed or not.

    And a worker of a sealed model can dump no core: not dumpable (PR_GET_DUMPABLE is 3), limit 0.
    """
    folder = archive if is_sealed else tmp_path_factory.mktemp("plain")
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), KEY.hex()[:20]],
        env={"SECRET": KEY.hex(), "MARSHIP_SEAL_KEY": "env:SECRET"},
        capture_output=True,
        text=True,
        check=True,
    )
    word, dumps, names, found = done.stdout.splitlines()
    assert word == ("a" if is_sealed else "plain")
    if is_sealed:
        assert dumps == "0 0 0"
    assert names == "[]"
    assert found == "0"
