"""Private inference: a server computes on what it cannot read.

compiler.py     an ONNX graph as a plan: what can be encrypted, and what to do about the rest
segments.py     parts of a graph as matrices and polynomials, by asking ONNX Runtime
phases.py       an input packed for convolutions
rings.py        the smallest ring that a plan fits
step.py         `export --private` and `package --private`
client_file.py  NAME.client.json: what a client must know, and nothing secret
key_file.py     a client's keys in a file
encoder.py      a part of the model that the client runs before
he_client.py    HeClient

Importing it needs no library for encryption.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marship.private.he_client import HeClient

__all__ = ["HeClient"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a class of the room
    if name != "HeClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marship.private.he_client import HeClient

    return HeClient
