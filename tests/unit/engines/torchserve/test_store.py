"""A damaged archive is told before TorchServe makes a riddle of it."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from marship.engines.store import holds
from marship.engines.torchserve.store import Identity, check_archive
from marship.errors import NotFoundError, PackageError
from marship.trust.archive import CONFIG_FILE
from marship.trust.archive import MANIFEST_FILE as MANIFEST

MODEL = {"modelName": "x", "modelVersion": "1.0", "handler": "h.py"}
GOOD = json.dumps({"runtime": "python", "model": MODEL})


def write(path: Path, files: dict[str, str]) -> None:
    """Write a zip file without compression."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_a_whole_archive_passes(tmp_path: Path) -> None:
    """A handler of its own, or one that TorchServe brings; it is what its manifest says."""
    write(tmp_path / "y.mar", {"h.py": "", MANIFEST: GOOD})
    assert check_archive(tmp_path, "y.mar") == Identity("x", "1.0")
    write(tmp_path / "y.mar", {MANIFEST: GOOD.replace("h.py", "image_classifier")})
    assert check_archive(tmp_path, "y.mar") == Identity("x", "1.0")


def test_of_a_folder_and_a_tgz_the_manifest_is_read(tmp_path: Path) -> None:
    """The rest of them is TorchServe's affair; without one nobody knows their model's name."""
    folder = tmp_path / "folder"
    (folder / "MAR-INF").mkdir(parents=True)
    with pytest.raises(PackageError, match="must have a readable MAR-INF"):
        check_archive(tmp_path, "folder")
    (folder / MANIFEST).write_text(GOOD)
    with tarfile.open(tmp_path / "y.tgz", "w:gz") as packed:
        packed.add(folder / MANIFEST, MANIFEST)
    assert check_archive(tmp_path, "folder") == Identity("x", "1.0")
    assert check_archive(tmp_path, "y.tgz") == Identity("x", "1.0")
    (tmp_path / "y.tgz").write_bytes((tmp_path / "y.tgz").read_bytes()[:20])
    with pytest.raises(PackageError, match="must have a readable MAR-INF"):
        check_archive(tmp_path, "y.tgz")


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"h.py": ""}, "it has no MAR-INF/MANIFEST.json"),
        ({MANIFEST: "{"}, "readable MAR-INF/MANIFEST.json"),
        ({MANIFEST: "[]"}, "MAR-INF/MANIFEST.json without a model"),
        ({MANIFEST: GOOD}, r"none of the name 'h\.py'"),
        ({MANIFEST: GOOD.replace("handler", "hander"), "h.py": ""}, "none of the name ''"),
        ({MANIFEST: GOOD, "h.py": "", "../../x": ""}, "an entry with path traversal"),
        ({MANIFEST: GOOD, "h.py": "", CONFIG_FILE: "a: &a [1]\n<<: {b: *a}"}, "a merge key"),
    ],
)
def test_an_archive_that_lacks_something_is_reported(
    tmp_path: Path, files: dict[str, str], fault: str
) -> None:
    """What is wrong with it, and that it must be packaged again."""
    write(tmp_path / "x.mar", files)
    with pytest.raises(PackageError, match=f"{fault}.*ackage the model again"):
        check_archive(tmp_path, "x.mar")


def test_a_damaged_archive_is_reported(tmp_path: Path) -> None:
    """Empty, no zip file, cut off, and one changed byte."""
    path = tmp_path / "x.mar"
    write(path, {"h.py": "the handler" * 100, MANIFEST: GOOD})
    whole = path.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], whole.replace(b"the", b"thE", 1)):
        path.write_bytes(damaged)
        with pytest.raises(PackageError, match="must be a plain archive"):
            check_archive(tmp_path, "x.mar")


def test_an_archive_that_is_not_there_is_reported(tmp_path: Path) -> None:
    """With what the store holds."""
    (tmp_path / "y.mar").touch()
    with pytest.raises(NotFoundError, match=r"x\.mar must lie in .* which holds y\.mar"):
        check_archive(tmp_path, "x.mar")


def test_of_many_archives_some_are_named(tmp_path: Path) -> None:
    """A store with hundreds does not fill the screen."""
    assert holds(tmp_path) == "holds no archive"
    for number in range(12):
        (tmp_path / f"m{number:02}.mar").touch()
    assert holds(tmp_path).endswith("m08.mar, m09.mar and 2 more")
