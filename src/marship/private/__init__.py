"""Private inference: a server computes on what it cannot read.

compiler.py     an ONNX graph as a plan: what can be encrypted, and what to do about the rest
segments.py     parts of a graph as matrices and polynomials, by asking ONNX Runtime
phases.py       an input packed for convolutions
rings.py        the smallest ring that a plan fits
exactness.py    whether encrypted answers are exact enough
step.py         `export --private` and `package --private`
client_file.py  NAME.client.json: what a client must know, and nothing secret
key_file.py     a client's keys in a file
encoder.py      a part of the model that the client runs before
known.py        inputs with known answers, which are nobody's data
rows.py         what a client is asked for, as rows of numbers
he_keys.py      a client's keys in use, and new ones after a few failures
he_client.py    HeClient
mpc/            three parties: programs, archives, and MpcClient

Importing it needs no library for encryption.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marship.private.he_client import HeClient
    from marship.private.mpc.client import MpcClient

__all__ = ["HeClient", "MpcClient"]

_PLACES = {"HeClient": "he_client", "MpcClient": "mpc.client"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  a class of the room
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"marship.private.{_PLACES[name]}"), name)
