"""JSON, YAML and TOML of strangers: plain values or one clear error, in bounded time and memory."""

import json
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from marship import texts
from marship.texts import TextError

pytestmark = pytest.mark.slow

MOST_S = 8.0  # for the largest text that is allowed; a bomb takes minutes
MOST_MEMORY_BYTES = 64 << 20
DEPTH = 12


def bomb(join: str) -> bytes:
    """YAML in which each line stands for nine of the line before it."""
    lines = [f"a{i}: &a{i} {join.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, DEPTH)]
    return ("a0: &a0 {k: 1}\n" + "".join(lines)).encode()


def is_plain(value: object) -> bool:
    """Whether it consists of what JSON can say."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return type(value) in {type(None), bool, int, float, str}


YAML_FAULTS = {
    b"a: &a {b: 1}\nc: {<<: *a}\n": "a merge key",
    b"x: 0001-01-01T00:00:00+23:59\n": "the timestamp",
    b"x: 2026-01-01\n": "the timestamp",
    b"x: 0x" + b"f" * 6000: "the int",
    b"x: 1" + b":1" * 10_000: "the int",
    b"x: 1:" + b":".join([b"1"] * 400) + b".5": "the float",
    b"x: !!binary 'A'\n": "the binary",
    b"? [1, 2]\n: 3\n": "a key that is no text",
    b"on: 1\n": "a key that is no text",
    b"x: !!set [1]\n": "the tag",
    b"x: !!pairs [1]\n": "the tag",
    b"x: !!omap [1]\n": "the tag",
    b"x: !!python/tuple [1]\n": "the tag",
    b"x: !!int abc\n": "the int",
    b"x: !!int ''\n": "the int",
    b"x: !!bool abc\n": "the bool",
    b'x: "\\ud800"\n': "surrogate",
    b'x: "\\UFFFFFFFF"\n': "too large",
    b"x: 1\nx: 2\n": "twice",
    b"&a [*a]\n": "an alias",
    b"a: 1\n---\nb: 2\n": "more than one document",
    b"x: =\n": "the value",
    "x: 1".encode("utf-16"): "utf-8",
    b"x: \x00\n": "special characters",
    b"[" * 60 + b"]" * 60: "more than 50 deep",
    bomb("{{<<: [{}]}}"): "a merge key",
    bomb("[{}]"): "more than 100,000 values",
    b"#" * (texts.MOST_YAML_BYTES + 1): "65,536 are allowed",
}


@pytest.mark.parametrize("text", YAML_FAULTS)
def test_yaml_that_is_not_plain_is_reported(text: bytes) -> None:
    """What it holds, in a line; nothing of it is built."""
    with pytest.raises(TextError, match=YAML_FAULTS[text]) as caught:
        texts.yaml_value(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"# nothing\n",
        b"minWorkers: 1\nhandler: {a: 0.5, b: 'x', c: yes, d: ~, e: 0x1f, f: -1e+3, g: [1, [2]]}\n",
        b"a: &a {b: 1}\nc: *a\n",
        b"a: |\n  two\n  lines\nb: !!str 1\nc: 1_000\nd: .inf\ne: 'caf\xc3\xa9'\n",
    ],
)
def test_plain_yaml_is_read_as_pyyaml_does(text: bytes) -> None:
    """TorchServe's workers read the same file with yaml.safe_load."""
    assert texts.yaml_value(text) == yaml.safe_load(text)


KEYS = st.sampled_from(
    ["a", "b", "<<", "? x", "1", "*a", "&b c", "'k'", "!!str d", "null", "=", ""]
)
SCALARS = st.sampled_from([
    "1", "-1", "0x1f", "010", "1:30", "1_0", "1e3", ".inf", ".nan", "yes", "~", "=", "<<", "text",
    "2026-01-01", "2026-01-01T00:00:00Z", "''", '"\\u00e9"', '"\\ud800"', "!!int", "!!float",
    "!!binary", "!!set", "!!timestamp", "!!python/name:os.system", "!", "&a", "*a", "*b", "|", "%",
])  # fmt: skip
NODES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=5).map(
            lambda pairs: f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}"
        ),
        st.tuples(st.sampled_from(["&a", "&b", "!!map", "!!seq", "!x"]), inner).map(" ".join),
    ),
    max_leaves=30,
)
DOCUMENTS = st.lists(st.tuples(KEYS, NODES), max_size=8).map(
    lambda pairs: "\n".join(f"{key}: {node}" for key, node in pairs).encode()
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(DOCUMENTS, st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_yaml_is_plain_or_refused(text: bytes) -> None:
    """Anchors, tags, merges, odd keys and noise: plain values, PyYAML's own, or our error."""
    started = process_time()
    try:
        value = texts.yaml_value(text)
    except TextError:
        value = None
    else:
        assert is_plain(value)
        assert repr(value) == repr(yaml.safe_load(text.decode()))
    assert process_time() - started < MOST_S


PIECES = [
    b"[", b"[\n", b"- ", b"? ", b"{", b"a: ", b"[],", b"a,", b"&a ", b"!", b"'", b'"\\n', b"%A\n",
    b"*a ", b"- a\n", b"\n", b"|\n", b" ", b"a", b"!a!%41", b"{a: ", b"? a\n", b"---\n", b"a b\n ",
]  # fmt: skip


@pytest.mark.parametrize("start", [b"", b"[", b"x: '"])
def test_yaml_of_one_piece_again_and_again_takes_seconds(start: bytes) -> None:
    """As many as fit: no construct of the scanner's makes time or memory grow with the square."""
    for piece in PIECES:
        text = (start + piece * texts.MOST_YAML_BYTES)[: texts.MOST_YAML_BYTES]
        started = process_time()
        with suppress(TextError):
            texts.yaml_value(text)
        assert process_time() - started < MOST_S, piece


@pytest.mark.parametrize("text", [bomb("{{<<: [{}]}}"), bomb("[{}]"), b"[" * 60_000])
def test_a_yaml_bomb_costs_nothing(text: bytes) -> None:
    """Merge keys took 757 MB and 23 s, and aliases are as cheap to write."""
    tracemalloc.start()
    started = process_time()
    with pytest.raises(TextError):
        texts.yaml_value(text)
    assert process_time() - started < MOST_S
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST_MEMORY_BYTES


JSON_FAULTS = {
    b'{"a": 1, "a": 2}': "twice",
    b"1" * 41: "40 digits",
    b'["\\ud800"]': "surrogate",
    b"[" * 100_000: "more than 50 deep|more than 100,000",
    b'{"a":' * 60 + b"1" + b"}" * 60: "more than 50 deep",
    b"[" + b"[]," * 150_000 + b"[]]": "more than 100,000 values",
    b" " * (texts.MOST_BYTES + 1): "1,048,576 are allowed",
    "[1]".encode("utf-16"): "utf-8",
    b"": "Expecting value",
}


@pytest.mark.parametrize("text", JSON_FAULTS)
def test_json_that_is_too_much_is_reported(text: bytes) -> None:
    """Before it is built, where that is what costs."""
    tracemalloc.start()
    with pytest.raises(TextError, match=JSON_FAULTS[text]):
        texts.json_value(text)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST_MEMORY_BYTES


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False))
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_json_can_say_is_read(value: object) -> None:
    """As json.loads reads it."""
    assert texts.json_value(json.dumps(value).encode()) == value


TOML_FAULTS = {
    b"a = 2026-01-01\n": "quoted",
    b"a = 0x" + b"f" * 6000: "40 digits",
    b"a" + b".a" * 100_000 + b" = 1": "200 dots",
    b"a = " + b"[" * 10_000: "more than 50 deep",
    b"a = " + b"[" * 60 + b"]" * 60: "more than 50 deep",
    b"#" * (texts.MOST_TOML_BYTES + 1): "262,144 are allowed",
    b"a = 1\na = 2": "overwrite",
    b"\xff": "utf-8",
}


@pytest.mark.parametrize("text", TOML_FAULTS)
def test_toml_that_is_too_much_is_reported(text: bytes) -> None:
    """A key of 100,000 parts took all memory of the machine."""
    started = process_time()
    with pytest.raises(TextError, match=TOML_FAULTS[text]):
        texts.toml_value(text)
    assert process_time() - started < MOST_S


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """To open a pipe waits for its writer, and a device may never end; neither happens here."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match="Not a regular file"):
            texts.open_file(path)
    with pytest.raises(IsADirectoryError):
        texts.open_file(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with texts.open_file(tmp_path / "file") as file:
        assert file.read() == b"x"
