"""The public part of a plan: what a client needs to encrypt and decrypt, and no weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from marship.errors import DataError, LoadError
from marship.serving.private.ckks import Ring, Vector
from marship.serving.private.packing import Packing
from marship.serving.private.plan import HePlan, filled

_MOST_STEPS = 64
"""Rotations with keys; a plan has about as many as the logarithm of its slots."""


@dataclass(frozen=True)
class PublicPlan:
    """What a client must know of a plan.

    Attributes:
        ring: The ring.
        inputs: Values of a row of the model's input.
        outputs: Values of a row of its output.
        packing: How an input is packed.
        stride: Output i stands in slot i * stride.
        zeros: The first slot of those that are zero in a right answer, and the one behind them.
        steps: The rotations that need keys.
        multiplies: Whether products of ciphertexts need a key.
        level: Of the answer.
        constants: Outputs that depend on no input, and their values.
        digest: SHA-256 of the plan's file, in hexadecimal.
    """

    ring: Ring
    inputs: int
    outputs: int
    packing: Packing
    stride: int
    zeros: tuple[int, int]
    steps: tuple[int, ...]
    multiplies: bool
    level: int
    constants: tuple[tuple[int, float], ...]
    digest: str

    @classmethod
    def of(cls, plan: HePlan, digest: str) -> Self:
        """The public part of a plan, whose file has the digest."""
        return cls(
            ring=plan.ring,
            inputs=plan.inputs,
            outputs=plan.outputs,
            packing=plan.packing,
            stride=plan.stride,
            zeros=(plan.zeros.start, plan.zeros.stop),
            steps=plan.rotations(),
            multiplies=plan.multiplies,
            level=plan.ring.levels,
            constants=plan.constants,
            digest=digest,
        )

    def packed(self, values: Vector) -> Vector:
        """A row of the model's input, float64 (inputs,), in all slots."""
        return self.packing.pack(values, self.ring.slots)

    def noise(self, slots: npt.NDArray[np.complex128]) -> float:
        """The largest number where a right answer has none but noise."""
        zeros = slots.real[slice(*self.zeros)]
        return float(max(np.abs(slots.imag).max(), np.abs(zeros).max()))

    def unpacked(self, slots: npt.NDArray[np.complex128]) -> Vector:
        """A row of the model's output, float64 (outputs,)."""
        answers = np.ascontiguousarray(slots.real[: self.outputs * self.stride : self.stride])
        return filled(answers, self.constants)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, from a file that anybody may have written.

        Raises:
            DataError: It is something else.
        """
        try:
            ring = Ring(**{**value["ring"], "bits": tuple(value["ring"]["bits"])})
            plan = cls(
                **{
                    **value,
                    "ring": ring,
                    "packing": Packing.from_json(value["packing"]),
                    "zeros": tuple(value["zeros"]),
                    "steps": tuple(value["steps"]),
                    "constants": tuple((place, float(one)) for place, one in value["constants"]),
                }
            )
            plan._check()
        except (KeyError, TypeError, ValueError, AttributeError, LoadError) as error:
            raise DataError(
                f"a client file must hold the public part of a plan, got {error!r}. Get it again "
                "from where the model is packaged."
            ) from error
        return plan

    def _check(self) -> None:
        packing, slots = self.packing, self.ring.check().slots
        counts = (packing.period, packing.width, packing.copies, packing.group, *packing.index,
                  *(place for place, _ in self.constants), *self.steps, self.inputs,
                  self.outputs, self.stride,
                  *self.zeros, self.level, *self.ring.bits, self.ring.scale_bits)  # fmt: skip
        if not all(type(count) is int for count in counts):
            raise TypeError("a count that is no whole number")
        fits = self.inputs <= packing.period <= slots and self.outputs * self.stride <= slots
        if not (fits and min(self.inputs, self.outputs, self.stride, packing.width) >= 1):
            raise ValueError("more values than slots")
        if packing.index and not all(-1 <= place < self.inputs for place in packing.index):
            raise ValueError("values that the input does not have")
        if min(packing.copies, packing.group + 1, slots - len(packing.index) + 1) < 1:
            raise ValueError("a packing beyond the slots")
        first, behind = self.zeros
        if not 0 <= first < behind <= slots:
            raise ValueError("no slots that are zero")
        if not all(0 <= place < self.outputs for place, _ in self.constants):
            raise ValueError("constants that the output does not have")
        if self.level != self.ring.levels:
            raise ValueError("a level of another plan")
        is_few = len(self.steps) <= _MOST_STEPS
        if not (is_few and all(0 < step < slots for step in self.steps)):
            raise ValueError("rotations beyond the slots")
        if len(bytes.fromhex(self.digest)) != hashlib.sha256().digest_size:
            raise ValueError("a digest of another length")

    @cached_property
    def key_bytes(self) -> list[int]:
        """The exact length of each evaluation key, inflated."""
        relin = [self.ring.relin_bytes()] if self.multiplies else []
        return relin + [self.ring.galois_bytes() for _ in self.steps]
