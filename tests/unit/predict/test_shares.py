"""A share of the files on a node, whose worker some of them end.

The worker is a stand-in here, which loads as soon as somebody waits for it: tests/server/ray has a
real one.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.hosted import HostedVersion
from marship.errors import LoadError
from marship.predict.ray import asker, shares
from marship.predict.ray.asker import ShareAsker, ShareTask
from marship.predict.rows import Row
from marship.predict.sources import Source

DIED, NONE = (
    b'{"code": "%s", "type": "Error", "message": "must live."}' % code
    for code in (b"worker_died", b"no_worker")
)
TASK = ShareTask(
    served=HostedVersion(
        name="m", version="1", source=ArchiveSource(file="m.mar", digest="d", url=None),
        batch_size=1, startup_s=60.0, has_gpu=False,
    ),
    chunks=(), content_type=None, in_flight=4, timeout_s=60.0,
)  # fmt: skip


class Worker:
    """In place of `Hosted`: a file that says "end" ends the worker."""

    def __init__(self, folder: Path, loads: int) -> None:
        self.socket, self._left, self.deaths, self._lives = folder / "s", loads, 0, False
        self._server: Any = None

    async def ready(self, within_s: float) -> bool:
        """Load, if it has ended."""
        assert within_s > TASK.served.startup_s
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._answer, str(self.socket))
        await asyncio.sleep(0)
        if not self._lives and self._left:
            self._left, self._lives = self._left - 1, True
        return self._lives

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            size = 0
            while (line := await reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    size = int(line.partition(b":")[2])
            body = await reader.readexactly(size)
            assert head.startswith(b"POST")
            status, answer = (b"200 OK", b"[1]") if self._lives else (b"503 Gone", NONE)
            if self._lives and b"end" in body:
                self._lives, self.deaths = False, self.deaths + 1
                status, answer = b"503 Gone", DIED
            writer.write(
                b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (status, len(answer), answer)
            )

    def check(self) -> None:
        """As it is if it can never load."""
        raise LoadError("a worker of m must live, got 3 deaths.")

    def close(self) -> None:
        """Nothing is left."""


def rows(folder: Path, monkeypatch: pytest.MonkeyPatch, loads: int) -> tuple[list[Row], Worker]:
    """What a share of 12 files becomes, of which one ends workers."""
    worker = Worker(folder, loads)
    monkeypatch.setattr(asker, "Hosted", lambda *_: worker)
    files = [folder / f"{number:02}.json" for number in range(12)]
    for file in files:
        file.write_text('["end"]' if file.name == "05.json" else "[0]")
    table = pa.Table.from_pylist([shares.packed(Source(file, file.name)) for file in files])
    return list(shares.rows(ShareAsker(TASK)(table))), worker


def test_a_file_that_ends_its_worker_twice_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a worker loads; all other files get their answers."""
    found, worker = rows(tmp_path, monkeypatch, loads=9)
    failed = [row for row in found if row.error]
    assert [(row.file, row.status) for row in failed] == [("05.json", 503)]
    assert failed[0].error.startswith("worker_died: ")
    assert len(found) == 12
    assert worker.deaths == 2


def test_a_worker_that_never_loads_again_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the worker's own error, and without a row for every file."""
    with pytest.raises(Exception, match="must live, got 3 deaths"):
        rows(tmp_path, monkeypatch, loads=1)


def test_where_every_file_hangs_few_are_asked_again() -> None:
    """One after the other they would take days; the same command asks the rest again."""
    asker = object.__new__(ShareAsker)
    asker._in_flight, asker._lonely = 4, asyncio.Lock()
    asked: Counter[str] = Counter()

    async def row_of(source: Source) -> Row:
        asked[source.name] += 1
        return Row(source.name, "m 1.0", 504)

    async def rows() -> list[Row]:
        asker._slots = asyncio.Semaphore(4)
        return await asker._rows([Source.at(Path(str(number))) for number in range(40)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asker, "_row_of", row_of, raising=False)
        found = asyncio.run(rows())
    assert Counter(row.status for row in found) == {504: 40}
    assert sorted(asked.values()) == [1] * 37 + [2] * 3
