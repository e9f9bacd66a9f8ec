"""Which files a run takes, what their names say, and where their rows may go."""

import os
from pathlib import Path

import pytest

from marship.errors import UsageError
from marship.predict import sources
from marship.predict.sources import Found, Source
from marship.serving.formats.media import media_type


def write(folder: Path, *files: str) -> None:
    """Empty files."""
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


def names(folder: Path, found: Found) -> list[str]:
    """The paths of the files to predict, below a folder."""
    return [str(source.path.relative_to(folder)) for source in found.sources]


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    """Pictures and sound at every depth; nothing hidden, no text, each once."""
    write(tmp_path, "b/2.JPG", "b/1.webp", "a.flac", "e.txt", ".f.jpg", ".g/h.jpg")
    assert names(tmp_path, sources.find([str(tmp_path)])) == ["a.flac", "b/1.webp", "b/2.JPG"]
    assert len(sources.find([str(tmp_path), str(tmp_path / "b/2.JPG")]).sources) == 3
    chosen = sources.find([str(tmp_path), str(tmp_path / "a.flac")], ["jpg", ".TXT"])
    assert names(tmp_path, chosen) == ["e.txt", "b/2.JPG", "a.flac"]


def test_json_beside_pictures_is_no_question(tmp_path: Path) -> None:
    """In a folder without pictures and sound JSON and npy are predicted; beside them neither."""
    write(tmp_path, "in/c.json", "in/deep/d.npy", "photos/c.json", "photos/c.jpg")
    asked, photos = str(tmp_path / "in"), str(tmp_path / "photos")
    assert names(tmp_path, sources.find([asked])) == ["in/c.json", "in/deep/d.npy"]
    found = sources.find([asked, photos])
    assert names(tmp_path, found) == ["in/c.json", "in/deep/d.npy", "photos/c.jpg"]
    assert found.passed_over == [f"{photos}/c.json"]
    chosen = sources.find([photos, f"{photos}/c.json"])
    assert names(tmp_path, chosen) == ["photos/c.jpg", "photos/c.json"]
    assert chosen.passed_over == []


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    """A dead link, a link to a folder, which may lead in a circle, and a file of no known kind."""
    write(tmp_path, "in/a.jpg", "in/deep/notes.txt", "other/b.jpg", "in/.hidden")
    (tmp_path / "in/dead.jpg").symlink_to("nowhere")
    (tmp_path / "in/deep/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/linked.jpg").symlink_to(tmp_path / "other/b.jpg")
    found = sources.find([str(tmp_path / "in")])
    assert names(tmp_path, found) == ["in/a.jpg", "in/linked.jpg"]
    short = [name.removeprefix(f"{tmp_path}/in/") for name in found.passed_over]
    assert short == ["dead.jpg", "deep/loop", "deep/notes.txt"]
    chosen = sources.find([str(tmp_path / "in")], ["jpg"]).passed_over
    assert [Path(name).name for name in chosen] == ["dead.jpg", "loop"]  # a text is not wanted


@pytest.mark.parametrize("places", [["absent"], ["."], ["-", "."]])
def test_nothing_to_predict_is_an_error(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, an empty folder, and - beside others are errors before anything is sent."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="must"):
        sources.find(places)


def test_suffixes_tell_types() -> None:
    """By the standard's table and ours, whatever the case; a compressed file is octets."""
    wanted = {
        "x.JPEG": "image/jpeg",
        "x.webp": "image/webp",
        "x.flac": "audio/flac",
        "x.json": "application/json",
        "x.npy": "application/x-npy",
        "x.json.gz": "application/octet-stream",
        "x": "application/octet-stream",
    }
    assert {name: media_type(Path(name)) for name in wanted} == wanted


@pytest.mark.parametrize("out", ["in/out.csv", "in/deep/../out.jsonl", "out.txt"])
def test_responses_never_lie_among_the_requests(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of answers inside the folder, or of an unknown form, is refused."""
    monkeypatch.chdir(tmp_path)
    Path("in/deep").mkdir(parents=True)
    with pytest.raises(UsageError, match="--out"):
        sources.check_out(Path(out), ["in"])
    sources.check_out(sources.default_out(["in"]), ["in"])
    assert sources.default_out(["in"]) == Path("in.predictions.csv")


def test_names_are_safe_in_a_table() -> None:
    """A path that begins a formula gets ./ before it, one that is no UTF-8 is escaped."""
    assert Source.at(Path("=cmd()")).name == "./=cmd()"
    assert Source.at(Path(os.fsdecode(b"bad\xff.jpg"))).name == "bad\\xff.jpg"


def test_two_files_never_have_one_name(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is written as its escape, which may be the other one's name."""
    for name in (b"bad\xff.json", rb"bad\xff.json"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    with pytest.raises(UsageError, match=r"a name of its own in the table, got .*bad\\xff.json of"):
        sources.find([str(tmp_path)])
