"""What bounds three parties' memory, requests and connections, and what a client tells them."""

import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from marship.errors import ModelError, PrivateError
from marship.private.mpc import archives, client, lowering, nodes
from marship.private.mpc.client import MpcClient
from marship.serving.private.mpc import follower, program, rehearsal, ring
from marship.serving.private.mpc.shares import PARTIES
from trios import Trio, contents, open_outputs, package, running, write_graph
from waiting import until

ROWS = np.random.default_rng(5).normal(size=(5, 6))
CLOSE = 0.01


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three parties in session."""
    with running(package(tmp_path_factory.mktemp("trio"))) as one:
        yield one


def is_right(trio: Trio, rows: Any = ROWS) -> bool:
    """Whether a client gets the open model's outputs."""
    found = trio.client().predict(rows)
    return bool(np.abs(found - open_outputs(trio.model, rows)).max() < CLOSE)


def test_an_answer_out_of_range_is_asked_for_again_twice_in_a_clients_life(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many questions: parties see each second one, so a cheat learns two bits at most."""
    real, wrong = ring.decode, [1]

    def decode(words: Any) -> Any:
        wrong[0] -= 1
        return real(words) + (2.0**38 if wrong[0] >= 0 else 0)

    monkeypatch.setattr(ring, "decode", decode)
    asking, before = trio.client(), len(trio.received)
    for _ in range(client.SECOND_TRIES):
        wrong[0] = 1
        assert np.abs(asking.predict(ROWS) - open_outputs(trio.model, ROWS)).max() < CLOSE
    for _ in range(3):
        wrong[0] = 1
        with pytest.raises(PrivateError, match="after 2 that were asked for again"):
            asking.predict(ROWS)
    sent = trio.received[before:]
    assert len(set(sent)) == len(sent) == 2 * client.SECOND_TRIES + 3


def test_requests_are_split_by_their_bytes(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of large inputs go in as many requests as a server's limit takes, one row at least."""
    row_bytes = sum(trio.stations[0].sizes.box_bytes(party, 1) for party in range(PARTIES))
    for most, requests in ((2 * row_bytes, 3), (1, 5), (10**6, 1)):
        monkeypatch.setattr(client, "MOST_BYTES", most)
        before = len(trio.received)
        assert is_right(trio)
        assert len(trio.received) - before == requests
        assert all(len(body) <= max(most, row_bytes) + 200 for body in trio.received[before:])


def test_a_batch_is_computed_in_pieces_that_fit_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parties cut alike, and each client gets its rows."""
    made = package(tmp_path)
    found = made.stations[0].program
    row = program.row_bytes(found.input_size, found.steps)
    monkeypatch.setattr(program, "BATCH_BYTES", 3 * row)
    shapes: list[int] = []
    with running(made):
        model = made.stations[0].model
        run = model.run
        monkeypatch.setattr(model, "run", lambda *a: (shapes.append(a[1].shape[1]), run(*a))[1])
        assert is_right(made, np.tile(ROWS, (2, 1)))
    assert shapes[-4:] == [3, 3, 3, 1]


def wide(path: Path, kind: str, side: int) -> Path:
    """A convolution, or a max or average pool, that gathers far more than it is given."""
    weights = np.full((4, 4, 3, 3), 0.01, np.float32)
    more = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {"kernel_shape": [3, 3]}
    inputs = ["x", "w"] if kind == "Conv" else ["x"]
    graph = [helper.make_node(kind, inputs, ["y"], "wide", **more)]
    made = (4, side, side) if kind == "Conv" else (4, side - 2, side - 2)
    constants = [numpy_helper.from_array(weights, "w")] if kind == "Conv" else []
    return write_graph(path, graph, (4, side, side), made, constants)


@pytest.mark.parametrize("kind", ["Conv", "MaxPool", "AveragePool"])
def test_the_memory_of_a_row_is_estimated(tmp_path: Path, kind: str) -> None:
    """No less than it takes, and no eight times as much; three parties, whose peaks may differ."""
    made = package(tmp_path, wide(tmp_path / "m.onnx", kind, 24))
    models = [station.model for station in made.stations]
    found, rows = made.stations[0].program, 12
    values = ring.encode(np.random.default_rng(1).normal(size=(rows, found.input_size)))
    rehearsal.run(models, values[:1])  # what is kept for good: sessions, indices
    tracemalloc.start()
    rehearsal.run(models, values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row = program.row_bytes(found.input_size, found.steps)
    assert row / 8 < peak / rows / PARTIES < row


def test_a_row_that_takes_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When packaging, in one line with the estimate."""
    monkeypatch.setattr(archives, "_MOST_ROW_BYTES", 100_000)
    with pytest.raises(ModelError, match=r"at most 0.0001 GB of a party's memory"):
        package(tmp_path / "p", wide(tmp_path / "m.onnx", "Conv", 24))


def test_strangers_that_never_greet_keep_no_party_out(tmp_path: Path) -> None:
    """More connections than may greet at once: the oldest are closed, and a session begins."""
    made = package(tmp_path)
    host, _, port = made.stations[1].program.cards[1].address.rpartition(":")
    made.start(1)
    strangers = [
        socket.create_connection((host, int(port)), timeout=10)
        for _ in range(2 * follower._MOST_GREETING)
    ]
    try:
        assert strangers[0].recv(1) == b""  # closed before its five seconds are over
        made.start(2)
        leader = made.lead()
        until(lambda: leader.participant is not None, 4, "a session within the strangers' time")
        assert is_right(made)
    finally:
        made.stop()
        for one in strangers:
            one.close()


def test_only_the_number_of_golden_misses_is_opened(trio: Trio) -> None:
    """One word to each party, however many outputs: none learns which ones miss."""
    models = [station.model for station in trio.stations]
    sizes: list[int] = []
    parties = rehearsal.parties()
    for party in parties:
        opened = party.opened
        party.opened = lambda share, opened=opened: (sizes.append(share.size), opened(share))[1]  # type: ignore[method-assign]
    misses = rehearsal.together(lambda n: models[n].golden_misses(parties[n]))
    assert misses == [0, 0, 0]
    assert sizes == [2, 2, 2]


def scaled(path: Path) -> Path:
    """Pixels from 0 to 255, divided, and a dense layer with ReLU."""
    rng = np.random.default_rng(3)
    arrays = {"by": np.array(255.0), "w": rng.normal(size=(6, 3)) / 3, "b": rng.normal(size=3)}
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = [
        helper.make_node("Div", ["x", "by"], ["d"], "divided"),
        helper.make_node("Gemm", ["d", "w", "b"], ["h"], "dense"),
        helper.make_node("Relu", ["h"], ["y"], "relu"),
    ]
    return write_graph(path, graph, (6,), (3,), constants)


def test_a_factor_of_the_input_is_the_clients(tmp_path: Path) -> None:
    """It costs no step; the bounds hold for the limit times the factor."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6)).astype(np.float32)
    model = scaled(tmp_path / "m.onnx")
    lowered = nodes.ordered(lowering.lower(model, contents(model, golden=pixels).contract))
    factor, left = nodes.for_clients(lowered)
    assert [node.operation for node in left] == ["input", "linear", "relu"]
    assert factor == pytest.approx(1 / 255)
    made = package(tmp_path / "p", model, golden=pixels, option=("input_limit=255",))
    with running(made):
        asking = MpcClient(made.packed.client_file, made)  # type: ignore[arg-type]
        assert np.abs(asking.predict(pixels) - open_outputs(model, pixels)).max() < CLOSE
