"""Ask for digits that servers cannot read, and show what they saw. `make demo-private` runs it.

The client's classes are the library's; `Wire` stands between them and the server and keeps what
passes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from marship import Client, console
from marship.cli.tables import grid
from marship.private import HeClient, MpcClient
from marship.proof.cases import read_rows
from marship.settings import flags, setting

SHADES = " .:-=+*#%@"
WHITE = 16
LINE_BYTES, LINES = 16, 3


@dataclass(frozen=True)
class Settings:
    """What `make demo-private` made, and how much to ask."""

    square: Path = setting(Path("runs/digits-square"), "the run with squares")
    relu: Path = setting(Path("runs/digits-relu"), "the run with ReLU")
    model_store: Path = setting(Path("model_store"), "folder of the client files")
    rows: int = setting(150, "test pictures to ask for", minimum=1)


@dataclass
class Wire:
    """A client of the server that keeps what passes.

    Attributes:
        server: The client.
        sent: Bodies of requests.
        received: Bodies of responses, where they are bytes.
    """

    server: Any
    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    def predict(self, name: str, inputs: bytes, **given: Any) -> Any:  # noqa: ANN401  as Client has it
        """As `marship.Client.predict`."""
        self.sent.append(inputs)
        response = self.server.predict(name, inputs, **given)
        self.received += [response] if isinstance(response, bytes) else []
        return response


@dataclass(frozen=True)
class Asked:
    """What came of asking for test pictures one after the other.

    Attributes:
        rows: How many.
        right: Of them, by the private model.
        right_open: Of them, by the open model.
        same: Both gave the same digit.
        difference: The largest of a logit.
        first_s: Seconds of the first question, with keys if there are any.
        median_ms: Of a question.
        first_bytes: What was sent for the first question.
        sent: The body of the last question.
        received: The body of its answer.
    """

    rows: int
    right: int
    right_open: int
    same: int
    difference: float
    first_s: float
    median_ms: float
    first_bytes: int
    sent: bytes
    received: bytes


def asked(client: HeClient | MpcClient, wire: Wire, run: Path, rows: int) -> Asked:
    """Ask a private model for test pictures of its run, and the open model for the same."""
    held = read_rows(run / "heldout.npz")
    pictures, labels = held["pixels"][:rows], held["target/label"][:rows]
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: pictures})
    _, first_s = timed(client.predict, pictures[0])
    first_bytes = sum(map(len, wire.sent))
    found, seconds = zip(*(timed(client.predict, picture) for picture in pictures), strict=True)
    digits, open_digits = np.argmax(found, 1), wanted.argmax(1)
    return Asked(
        rows=len(labels),
        right=int((digits == labels).sum()),
        right_open=int((open_digits == labels).sum()),
        same=int((digits == open_digits).sum()),
        difference=float(np.abs(np.array(found) - wanted).max()),
        first_s=first_s,
        median_ms=1e3 * statistics.median(seconds),
        first_bytes=first_bytes,
        sent=wire.sent[-1],
        received=wire.received[-1],
    )


def timed(call: Callable[[Any], Any], argument: object) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    started = time.perf_counter()
    return call(argument), time.perf_counter() - started


def drawn(picture: np.ndarray) -> str:
    """A picture, values of 0 to `WHITE` of shape (64,), as text of 8 lines."""
    levels = (picture * (len(SHADES) - 1) / WHITE).round().astype(int).reshape(8, 8)
    return "\n".join("    " + "".join(2 * SHADES[level] for level in row) for row in levels)


def dumped(body: bytes) -> str:
    """The first lines of a body, and some from its middle, as hexadecimal numbers."""
    lines = []
    for start in (0, len(body) // 2 // LINE_BYTES * LINE_BYTES):
        for place in range(start, start + LINES * LINE_BYTES, LINE_BYTES):
            part = body[place : place + LINE_BYTES]
            text = "".join(chr(byte) if chr(byte).isascii() and chr(byte).isprintable() else "."
                           for byte in part)  # fmt: skip
            lines.append(f"    {place:7d}  {part.hex(' ')}  {text}")
        lines.append("        ...")
    return "\n".join(lines)


def columns(way: Asked, *, encrypted: bool) -> dict[str, str]:
    """The rows of the table, by their names."""
    number = f"of {way.rows}"
    keys = f"{way.first_bytes / 1e6:.1f} MB, {way.first_s:.1f} s" if encrypted else "none"
    return {
        "network": "64-64-10, squares" if encrypted else "64-64-10, ReLU",
        "the server has the weights": "yes" if encrypted else "no, nor has a party",
        "right, the open model": f"{way.right_open} {number}",
        "right, asked in private": f"{way.right} {number}",
        "the same digit": f"{way.same} {number}",
        "logits differ by at most": f"{way.difference:.1g}",
        "sent once: keys": keys,
        "sent for a picture": f"{len(way.sent):,} bytes",
        "received": f"{len(way.received):,} bytes",
        "time, median": f"{way.median_ms:.0f} ms",
    }


@flags(Settings)
def main(settings: Settings) -> None:
    """Ask both private models for test pictures."""
    store, ways = settings.model_store, {}
    with Client() as server:
        for name, run, kind in (
            ("homomorphic encryption", settings.square, HeClient),
            ("three parties", settings.relu, MpcClient),
        ):
            wire = Wire(server)
            file = store / f"digits-{'he' if kind is HeClient else 'mpc'}.client.json"
            with console.err.status(f"asking for {settings.rows} pictures: {name}"):
                ways[name] = asked(kind(file, wire), wire, run, settings.rows)
    held = read_rows(settings.square / "heldout.npz")
    last = min(settings.rows, len(held["pixels"])) - 1
    show(ways, held["pixels"][last], int(held["target/label"][last]))


def show(ways: dict[str, Asked], picture: np.ndarray, digit: int) -> None:
    """Print a picture, what servers saw of it, and the table."""
    told = f"A test picture, somebody's {digit}, which stays with the client"
    console.write(f"\n{told}:\n\n{drawn(picture)}\n")
    for name, way in ways.items():
        told = f"What the server saw of it, by {name}: {len(way.sent):,} bytes"
        console.write(f"\n{told}\n\n{dumped(way.sent)}\n")
    parts = [columns(way, encrypted=name.startswith("homo")) for name, way in ways.items()]
    console.write("\n")
    grid(["", *ways], [[name, *(part[name] for part in parts)] for name in parts[0]])


if __name__ == "__main__":
    console.run_recipe(main)
