"""URLs for fsspec, wherever they are given."""

from pathlib import Path

import fsspec
import pytest

from marship.engines import urls
from marship.errors import UsageError


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("nowhere://x", "--archives must be one that fsspec reads here, got nowhere://x: Protocol"),
        ("s3://[x/y", "--archives must be one that fsspec reads here, got s3://[x/y: Invalid"),
        ("ftp://me:secret@host/x", "--archives must hold no password, since it is kept in"),
        ("simplecache::https://me:secret@host/x", "--archives must hold no password, since it is"),
        ("zip://a::https://me:secret@host/x.zip", "--archives must hold no password, since it is"),
        ("simplecache::memory://x", "--archives must be read by all nodes, got simplecache::mem"),
        ("zip://a::/none.zip", "--archives must be one that fsspec reads here, got zip://a::/none"),
        ("", "--archives must be a folder or URL, got an empty one."),
        ("memory://store", "--archives must be read by all nodes, got memory://store, which one"),
        ("~nosuchuser/x", "--archives must be one that fsspec reads here, got ~nosuchuser/x: "),
        ("zip://a::nowhere://b", "--archives must be one that fsspec reads here, got zip://"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line(url: str, line: str) -> None:
    """By the flag's name, and without a password."""
    with pytest.raises(UsageError) as told:
        urls.checked(url, "--archives")
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_what_a_library_says_at_length_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's of a missing Hadoop has 15,000 characters."""

    def fails(_url: str) -> None:
        raise ValueError("no libhdfs: " + "/jars/a.jar:" * 1000 + "\nTraceback")

    monkeypatch.setattr(fsspec, "url_to_fs", fails)
    with pytest.raises(UsageError, match="got hdfs://x: no libhdfs: /jars") as told:
        urls.opened("hdfs://x")
    assert len(str(told.value)) < 300
    assert "Traceback" not in str(told.value)


def test_a_folder_is_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and nodes run in folders of their own."""
    monkeypatch.chdir(tmp_path)
    assert urls.checked("store", "--archives") == str(tmp_path / "store")
    for url in ("file://store", "local://store"):
        assert urls.checked(url, "--archives") == str(tmp_path / "store")
