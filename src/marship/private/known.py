"""Known cases: inputs with the plan's own answers, with which clients try a server.

They are nobody's data, and the server must not have them: whoever knows at which inputs it is tried
computes rightly there and as it likes elsewhere. So they are drawn anew at each export, by no seed
that stands anywhere, and lie in a file for clients alone, whose digest the client file states.
"""

import io
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from marship.contract import NPZ_FAULTS, Arrays, Contract
from marship.errors import DataError, ModelError
from marship.private import client_file
from marship.private.client_file import ClientFile
from marship.private.rows import Values
from marship.private.segments import SegmentedGraph
from marship.proof.cases import batches, sizes_to_try
from marship.proof.golden import draw_synthetic
from marship.serving.private.plan import HePlan, filled

COUNT = 16
_HALVINGS = 30
_SEED_BITS = 128


@dataclass(frozen=True, slots=True)
class KnownCases:
    """Rows of what is encrypted, and the answers.

    Attributes:
        inputs: float64 (rows, inputs).
        outputs: float64 (rows, outputs).
    """

    inputs: Values = field(repr=False)
    outputs: Values = field(repr=False)

    def to_bytes(self) -> bytes:
        """The file."""
        file = io.BytesIO()
        np.savez(file, inputs=self.inputs, outputs=self.outputs)
        return file.getvalue()

    @classmethod
    def beside(cls, path: Path, file: ClientFile) -> Self:
        """Those beside a client file.

        Raises:
            UsageError: They cannot be read.
            DataError: They are others than the client file states.
        """
        data = client_file.read_beside(
            path, client_file.KNOWN_SUFFIX, file.known, ", or pass check_share=0"
        )
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = cls(
                    arrays["inputs"].astype(np.float64), arrays["outputs"].astype(np.float64)
                )
        except NPZ_FAULTS as error:
            raise DataError(f"known cases must be an npz, got {error!r}.") from error
        shapes = (len(found.inputs), file.input.size), (len(found.inputs), file.output.size)
        if (found.inputs.shape, found.outputs.shape) != shapes or not len(found.inputs):
            raise DataError("known cases must be of the client file's model, got others.")
        return found


def draw(
    graph: SegmentedGraph, plan: HePlan, contract: Contract, examples: Arrays | None, most: float
) -> KnownCases:
    """Draw cases over the range of the model's inputs, as synthetic golden cases are.

    Args:
        graph: The model.
        plan: Made of it.
        contract: The model's.
        examples: Rows that show the range; None takes the contract's.
        most: The largest output that the ring was chosen for: rows with a larger one are halved
            until they fit.

    Raises:
        ModelError: None fits.
    """
    rows = np.concatenate([graph.split(inputs)[0] for inputs in _inputs(contract, examples)])
    for _ in range(_HALVINGS):
        rows[~_fits(plan, rows, most)] /= 2
    fits = _fits(plan, rows, most)
    if not fits.any():
        raise ModelError(
            f"outputs for inputs near 0 must be within those for the examples, {most:.3g}, got "
            "larger ones: clients would have no known cases. Export with examples near 0, too."
        )
    return KnownCases(rows[fits], plan.compute(rows[fits]))


def _fits(plan: HePlan, rows: Values, most: float) -> npt.NDArray[np.bool_]:
    """Which rows have outputs up to `most`, constants, which no ciphertext holds, left out."""
    moving = filled(plan.compute(rows), [(place, 0.0) for place, _ in plan.constants])
    fits: npt.NDArray[np.bool_] = np.abs(moving).max(axis=1) <= most
    return fits


def _inputs(contract: Contract, examples: Arrays | None) -> Iterator[Arrays]:
    batch = batches(contract)[-1]
    sizes = [batch | one for one in sizes_to_try(contract, examples)]
    for number in range(-(-COUNT // max(batch.values()))):
        seed = secrets.randbits(_SEED_BITS)
        yield draw_synthetic(contract, examples, sizes[number % len(sizes)], seed).inputs
