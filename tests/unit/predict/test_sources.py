"""Which files a run takes, what their names say, and where their answers may go."""

import os
from pathlib import Path

import pytest

from marship.errors import UsageError
from marship.predict import sources
from marship.predict.sources import Source


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    """Pictures, sound, JSON and npy at every depth; nothing hidden, no text, each once."""
    for name in ("b/2.JPG", "b/1.webp", "a.flac", "c.json", "d.npy", "e.txt", ".f.jpg", ".g/h.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    found = [str(s.path.relative_to(tmp_path)) for s in sources.find([str(tmp_path)])]
    assert found == ["a.flac", "c.json", "d.npy", "b/1.webp", "b/2.JPG"]
    assert len(sources.find([str(tmp_path), str(tmp_path / "b/2.JPG")])) == 5
    chosen = sources.find([str(tmp_path), str(tmp_path / "a.flac")], ["jpg", ".TXT"])
    assert [source.path.name for source in chosen] == ["e.txt", "2.JPG", "a.flac"]


@pytest.mark.parametrize("places", [["absent"], ["."], ["-", "."]])
def test_nothing_to_ask_about_is_an_error(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, an empty folder, and - beside others are told before anything is asked."""
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
    assert {name: sources.media_type(Path(name)) for name in wanted} == wanted


@pytest.mark.parametrize("out", ["in/out.csv", "in/deep/../out.jsonl", "out.txt"])
def test_answers_never_lie_among_the_questions(
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
