"""Three parties of a small model: packaged, and in session over real TLS on this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from marship.contract import GoldenCase
from marship.errors import MarshipError
from marship.packaging.mar import Contents
from marship.packaging.settings import PackageSettings
from marship.private.mpc import archives, cards
from marship.private.mpc.client import MpcClient
from marship.proof import graph
from marship.serving.private.mpc import boxes, files, follower
from marship.serving.private.mpc.files import PARTY_FILE, Station
from marship.serving.private.mpc.follower import Follower
from marship.serving.private.mpc.leader import Leader
from marship.trust import archive
from models import write_model
from waiting import until

SIZES = (6, 8, 3)


def write_mlp(path: Path, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Path:
    """A network of dense layers with ReLU between them: float32 (batch, first) to (batch, last)."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], [], "x"
    for n, (taps, width) in enumerate(pairwise(sizes)):
        last = n == len(sizes) - 2
        for kind, shape in (("w", (taps, width)), ("b", (width,))):
            array = rng.normal(size=shape, scale=1 / np.sqrt(taps)).astype(np.float32)
            constants.append(numpy_helper.from_array(array, f"{kind}{n}"))
        made = "y" if last else f"h{n}"
        nodes.append(helper.make_node("Gemm", [value, f"w{n}", f"b{n}"], [made], f"dense{n}"))
        value = made
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"r{n}"], f"relu{n}"))
            value = f"r{n}"
    return write_graph(path, nodes, (sizes[0],), (sizes[-1],), constants)


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    given: tuple[int, ...],
    made: tuple[int | str, ...],
    constants: list[onnx.TensorProto] | None = None,
) -> Path:
    """A graph from `x`, (batch, *given), to `y`, (batch, *made)."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", given), ("y", made))
    )
    return write_model(path, helper.make_graph(nodes, "trio", [x], [y], constants or []))


def open_outputs(model: Path, inputs: Any) -> Any:
    """What the open model gives for float rows."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.asarray(inputs, np.float32)})[0]


def contents(model: Path, name: str = "shared", golden: Any = None) -> Contents:
    """What `package` has of an ONNX file before it packs, without the proof."""
    contract = replace(graph.contract_of(model), batch_axis="batch")
    shape = contract.inputs[0].shape[1:]
    drawn = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    inputs = drawn if golden is None else golden
    case = GoldenCase({"x": inputs}, {"y": open_outputs(model, inputs)})
    return Contents(name, Path("unused.py"), model, contract, [case], {})


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as ear:
        return int(ear.getsockname()[1])


def make_keys(folder: Path) -> list[tuple[Path, Path]]:
    """Three parties' keys and cards."""
    addresses = ["", *(f"127.0.0.1:{free_port()}" for _ in range(2))]
    return [cards.generate(n, address, folder) for n, address in enumerate(addresses)]


@dataclass
class Trio:
    """A packaged model, and its parties.

    Attributes:
        model: The open one.
        keys: Each party's key and card.
        packed: What packaging wrote.
        stations: The parties.
        followers: Parties 1 and 2 while they serve.
        leader: Party 0 while it leads.
        received: Bodies that reached party 0.
        sent: What it answered.
    """

    model: Path
    keys: list[tuple[Path, Path]]
    packed: archives.SharedPackage
    stations: list[Station]
    followers: list[Follower] = field(default_factory=list)
    leader: Leader | None = None
    received: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)

    def predict(self, name: str, body: bytes, *, version: str, content_type: str) -> bytes:
        """What a server with party 0 does."""
        assert (name, version) == (self.stations[0].program.model, "1.0")
        assert content_type == "application/octet-stream"
        self.received.append(body)
        assert self.leader is not None
        (answer,) = self.leader.ask([boxes.parse(body, self.stations[0].sizes)])
        if isinstance(answer, MarshipError):
            raise answer
        self.sent.append(answer)
        return answer

    def client(self) -> MpcClient:
        """A client that asks this trio."""
        return MpcClient(self.packed.client_file, self)  # type: ignore[arg-type]

    def start(self, number: int) -> Follower:
        """Start party 1 or 2."""
        station = self.stations[number]
        address = station.program.cards[number].address
        one = Follower(station.doors, station.sit, follower.listen(address))
        threading.Thread(target=one.serve, daemon=True).start()
        self.followers.append(one)
        return one

    def lead(self) -> Leader:
        """Start party 0."""
        station = self.stations[0]
        self.leader = Leader(station.doors.dial, station.sit)
        self.leader.start()
        return self.leader

    def stop(self) -> None:
        """Stop all parties."""
        if self.leader is not None:
            self.leader.stop()
        for one in self.followers:
            one.stop()


def station_of(path: Path, key: Path) -> Station:
    """A party's station of its archive."""
    return files.load(archive.read(path).contents(PARTY_FILE), key)


def package(  # noqa: PLR0913  what tests vary
    folder: Path,
    model: Path | None = None,
    *,
    name: str = "shared",
    golden: Any = None,
    keys: list[tuple[Path, Path]] | None = None,
    option: tuple[str, ...] = (),
) -> Trio:
    """Package a model for three parties, whose keys are made if none are given."""
    folder.mkdir(exist_ok=True)
    model = model or write_mlp(folder / "model.onnx")
    keys = keys or make_keys(folder / "keys")
    settings = PackageSettings(model_store=folder / "store", name=name, option=option)
    packed = archives.build(
        contents(model, name, golden), settings, [str(card) for _, card in keys]
    )
    stations = [station_of(path, key) for path, (key, _) in zip(packed.archives, keys, strict=True)]
    return Trio(model, keys, packed, stations)


@contextmanager
def running(trio: Trio, *, meets: bool = True) -> Iterator[Trio]:
    """The trio in session, as long as this is entered; without, if the parties cannot meet."""
    for number in (1, 2):
        trio.start(number)
    leader = trio.lead()
    try:
        if meets:
            until(lambda: leader.participant is not None, 60, "a session")
        yield trio
    finally:
        trio.stop()
