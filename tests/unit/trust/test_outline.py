"""Python of strangers is parsed where it can do no harm: an outline, or one clear error."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from marship.errors import PackageError
from marship.packaging.sbom import model
from marship.trust import outline as outlines
from marship.trust.outline import Class, SourceError, outline
from signed import write

NESTED = "\n".join(" " * level + "if 1:" for level in range(99)) + "\n" + " " * 99 + "pass\n"
HOSTILE = {
    "minus": "x = " + "-" * 100_000 + "1\n",
    "attributes": "x = a" + ".b" * 20_000 + "\n",
    "sum": "x = " + "+".join(["1"] * 50_000) + "\n",
    "elif": "if 1:\n  pass\n" + "elif 1:\n  pass\n" * 5000,
    "parentheses": "x = " + "(" * 250 + ")" * 250,
    "zero byte": "x = 1\0\n",
    "a long module": "import " + ".".join(["a"] * 1000) + "\n",
    "many imports": "\n".join(f"import a{i}" for i in range(20_001)),
    "long names": f"from {'a' * 1000} import " + ", ".join(f"b{i}" for i in range(30_000)),
    "memory": "x = [" + "-1," * 6_000_000 + "]",
    "bases": f"class A({'.'.join(['a'] * 20_000)}): pass",
    "another encoding": "# coding: nonsense\n",
    "indents": "\n".join(" " * level + "if 1:" for level in range(120)),
    "no Python": "class :",
}
SLOW = {"memory": pytest.mark.slow}
"""A parser that takes all it may takes seconds for it."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in HOSTILE])
def test_hostile_source_is_an_error_of_one_line(name: str) -> None:
    """Nesting, memory, odd bytes: neither a traceback nor the end of the calling process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError) as caught:
        outline({"h.py": HOSTILE[name].encode()}, "h.py")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 600 * 1024  # the text and its JSON, not what a parser makes of them


@pytest.mark.parametrize("source", [NESTED, "", "x = " + "(" * 150 + "1" + ")" * 150])
def test_deep_but_sound_source_is_read(source: str) -> None:
    """As far as Python itself goes."""
    assert outline({"h.py": source.encode()}, "h.py").classes == ()


def test_an_outline_names_classes_and_functions() -> None:
    """Those at the top, and classes that stand elsewhere as such."""
    source = b"class A(a.B, C):\n  def f(self): ...\n  class D: pass\ndef handle(): ...\n"
    found = outline({"h.py": source}, "h.py")
    assert set(found.classes) == {
        Class("A", is_top=True, bases=("a.B", "C"), functions=("f",)),
        Class("D", is_top=False, bases=(), functions=()),
    }
    assert found.functions == ("handle",)


def test_a_parser_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its limit of processor time, or by a crash of the interpreter's own."""
    run = subprocess.run
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(
        subprocess, "run", lambda _, **settings: run([sys.executable, "-c", crash], **settings)
    )
    with pytest.raises(SourceError, match="memory or time"):
        outline({"h.py": b""}, "h.py")


def test_too_much_source_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of an archive together have a bound."""
    monkeypatch.setattr(outlines, "MOST_BYTES", 100)
    with pytest.raises(SourceError, match="100 are allowed"):
        outline({"h.py": b"#" * 101}, "h.py")
    path = write(tmp_path / "lin.mar", {"handler.py": b"#" * 101})
    with pytest.raises(PackageError, match="at most 100 bytes"):
        model.describe(path)
