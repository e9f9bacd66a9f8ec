"""A model to try, and what it must answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Arrays

SEED = 0
_DRAWN = re.compile(r"(?P<dtype>\w+)\[(?P<shape>[\d, ]*)\](?:<(?P<below>\d+)|=(?P<value>\S+))?")


class NotRunError(Exception):
    """ONNX Runtime itself does not run the model on these inputs."""


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, and the outputs of the reference; both by name.

    Attributes:
        outputs: Those that the reference has; a model may give more.
    """

    inputs: Mapping[str, Any]
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class Given:
    """What a user has before the first command.

    Attributes:
        source: An ONNX file, or `file.py:function` of a PyTorch model.
        cases: What to ask.
        export: Settings of `marship export`; None for an ONNX file.
        weights: Of a PyTorch model.
        rtol: The reference's own tolerance, beside the contract's.
        atol: Likewise.
    """

    source: str
    cases: Sequence[Case]
    export: Mapping[str, Any] | None = None
    weights: Path | None = None
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One model of the table.

    Attributes:
        kind: Its group in the table.
        name: Its name within the kind.
        give: Writes the files into a folder; raises NotRunError.
        remark: What stands beside it in the table.
    """

    kind: str
    name: str
    give: Callable[[Path], Given] = field(compare=False)
    remark: str = ""


def drawn(text: str, generator: np.random.Generator) -> Any:  # noqa: ANN401  an array
    """An array such as `float32[8, 3]`, `int64[8]<100`, `int64[1]=16000` or `str[2, 1]`.

    Numbers are normal, whole ones below a bound (2 without one), texts are words.
    """
    found = _DRAWN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} describes no array")
    shape = [int(size) for size in found["shape"].split(",") if size.strip()]
    dtype = np.dtype(object if found["dtype"] == "str" else found["dtype"])
    if found["value"] is not None:
        value = found["value"] if dtype.kind == "O" else float(found["value"])
        return np.full(shape, value, dtype=dtype)
    if dtype.kind == "O":
        return generator.choice(np.array(["red", "green", "blue"], dtype=object), shape)
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    return np.asarray(generator.integers(0, int(found["below"] or 2), shape)).astype(dtype)
