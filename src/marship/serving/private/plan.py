"""A plan: a model as affine maps with powers between them, for one ring.

It has the weights, and lies in the archive as an npz. Clients have its public part: see `public`.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from marship.contract import NPZ_FAULTS, Arrays
from marship.errors import LoadError
from marship.serving.private.ckks import Ring, Vector
from marship.serving.private.packing import (
    Matrix,
    Packing,
    Product,
    power_of_two,
    product,
    summed,
)

PLAN_FILE = "he_plan.npz"
FORMAT = 1
INPUT = 0
"""The register of the client's ciphertext; each step writes the next one."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A register that is the sum of matrices times registers, and a bias.

    Attributes:
        matrices: By register, float64 (outputs, inputs).
        bias: float64 (outputs,).
    """

    matrices: Mapping[int, Matrix]
    bias: Vector


@dataclass(frozen=True, slots=True)
class Power:
    """A register that is u^2 of another one, or u (u^2 + p).

    Attributes:
        register: The one that is u.
        linear: p, float64 (values,); None for the square.
    """

    register: int
    linear: Vector | None = None


Step = Affine | Power


@dataclass(frozen=True, slots=True)
class Applied:
    """A step as what is done to ciphertexts.

    Attributes:
        products: By register; none for a power.
        bias: What is added, in all slots.
        stride: Value i of the result stands in slot i * stride.
    """

    products: Mapping[int, Product]
    bias: Vector = field(repr=False)
    stride: int = 1


@dataclass(frozen=True)
class HePlan:
    """A model as steps on registers.

    Attributes:
        ring: The ring that it fits.
        inputs: Values of a row of the model's input.
        outputs: Values of a row of its output.
        steps: In their order; the last one is the output.
        given: How the client packs the input; None is as `Packing.shifted` or repeated.
        constants: Outputs that depend on no input, with their values: the client fills them in.
    """

    ring: Ring
    inputs: int
    outputs: int
    steps: tuple[Step, ...]
    given: Packing | None = None
    constants: tuple[tuple[int, float], ...] = ()

    @property
    def multiplies(self) -> bool:
        """Whether ciphertexts are multiplied."""
        return any(isinstance(step, Power) for step in self.steps)

    @cached_property
    def packing(self) -> Packing:
        """How the client packs the input: shifted where one matrix alone is applied to it."""
        if self.given is not None:
            return self.given
        period = power_of_two(self.inputs)
        users = [step for step in self.steps if INPUT in _reads(step)]
        if len(users) == 1 and isinstance(users[0], Affine) and len(users[0].matrices) == 1:
            return Packing.shifted(self.inputs, len(users[0].bias), self.ring.slots)
        return Packing(period)

    @cached_property
    def applied(self) -> dict[int, Applied]:
        """The steps by their index, as what is done to ciphertexts; squares need nothing."""
        packings, found = [self.packing], {}
        for index, step in enumerate(self.steps):
            if isinstance(step, Affine):
                found[index] = self._apply(step, packings, is_last=index == len(self.steps) - 1)
                packings.append(Packing(power_of_two(len(step.bias))))
                continue
            packing = packings[step.register]
            if step.linear is not None:
                found[index] = Applied({}, packing.pack(step.linear, self.ring.slots))
            packings.append(packing)
        return found

    def _apply(self, step: Affine, packings: Sequence[Packing], *, is_last: bool) -> Applied:
        slots, (first, *others) = self.ring.slots, step.matrices
        one = None
        if is_last and not others:
            one = summed(step.matrices[first], packings[first], slots)
        if one is not None:
            bias, stride = np.zeros(slots), packings[first].period
            bias[: len(step.bias) * stride : stride] = step.bias
            return Applied({first: one}, bias, stride)
        products = {
            register: product(matrix, packings[register], slots, once=is_last)
            for register, matrix in step.matrices.items()
        }
        bias = Packing(power_of_two(len(step.bias))).pack(step.bias, slots)
        if is_last:
            bias[len(step.bias) :] = 0
        return Applied(products, bias)

    @cached_property
    def zeros(self) -> range:
        """Slots of the answer that are zero, or others are wrong, too: a modulus was exceeded.

        Imaginary parts do not tell that: reducing coefficients keeps them as zero as they were.
        """
        last = self.applied[len(self.steps) - 1]
        found = [one.zeros(self.ring.slots) for one in last.products.values()]
        biased = int(np.flatnonzero(last.bias)[-1]) + 1 if last.bias.any() else 0
        start = max(biased, *(one.start for one in found))
        return range(start, max(start, min(one.stop for one in found)))

    @property
    def stride(self) -> int:
        """Output i stands in slot i * stride."""
        return self.applied[len(self.steps) - 1].stride

    def rotations(self) -> tuple[int, ...]:
        """The rotations that need keys."""
        products = (one for applied in self.applied.values() for one in applied.products.values())
        return tuple(sorted({step for one in products for step in one.steps}))

    def compute(self, rows: Matrix) -> Matrix:
        """The plan on plain rows, float64 (rows, inputs), as (rows, outputs)."""
        return filled(self.registers(rows)[-1], self.constants)

    def registers(self, rows: Matrix) -> list[Matrix]:
        """All registers for plain rows, float64 (rows, inputs): the rows, then each result."""
        registers = [rows]
        for step in self.steps:
            if isinstance(step, Affine):
                parts = (registers[r] @ matrix.T for r, matrix in step.matrices.items())
                registers.append(sum(parts, start=step.bias))
            else:
                u = registers[step.register]
                registers.append(u * (u * u + step.linear) if step.linear is not None else u * u)
        return registers

    def to_bytes(self) -> bytes:
        """The plan's file: the same bytes every time."""
        arrays: Arrays = {}
        steps: list[dict[str, Any]] = []
        for index, step in enumerate(self.steps):
            if isinstance(step, Affine):
                steps.append({"affine": sorted(step.matrices)})
                arrays[f"{index}/bias"] = step.bias
                arrays |= {f"{index}/{r}": matrix for r, matrix in sorted(step.matrices.items())}
            else:
                steps.append({"power": step.register})
                if step.linear is not None:
                    arrays[f"{index}/linear"] = step.linear
        head = {
            "format": FORMAT,
            "ring": asdict(self.ring),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "steps": steps,
            "packing": self.given and asdict(self.given),
            "constants": self.constants,
        }
        text = np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, plan=text, **arrays)  # type: ignore[arg-type]  # its stub
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            LoadError: It is not a plan of this format.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                head = json.loads(arrays["plan"].tobytes())
                if head["format"] != FORMAT:
                    raise ValueError(f"format {head['format']}")
                ring = Ring(**{**head["ring"], "bits": tuple(head["ring"]["bits"])})
                steps = tuple(_steps(head["steps"], arrays))
            given = Packing.from_json(head["packing"]) if head["packing"] else None
            constants = tuple((place, value) for place, value in head["constants"])
            plan = cls(ring, head["inputs"], head["outputs"], steps, given, constants)
        except NPZ_FAULTS as error:
            raise LoadError(
                f"{PLAN_FILE} must hold a plan, got {error!r}. Package the model again."
            ) from error
        ring.check()
        return plan


def filled(answers: Matrix, constants: Sequence[tuple[int, float]]) -> Matrix:
    """Answers, float64 (..., outputs), with their constants."""
    if constants:
        places, values = zip(*constants, strict=True)
        answers = answers.copy()
        answers[..., list(places)] = values
    return answers


def _reads(step: Step) -> set[int]:
    return set(step.matrices) if isinstance(step, Affine) else {step.register}


def _steps(heads: list[dict[str, Any]], arrays: Mapping[str, Any]) -> Iterator[Step]:
    for index, head in enumerate(heads):
        if "affine" in head:
            matrices = {int(r): np.asarray(arrays[f"{index}/{r}"]) for r in head["affine"]}
            yield Affine(matrices, np.asarray(arrays[f"{index}/bias"]))
        else:
            name = f"{index}/linear"
            yield Power(int(head["power"]), np.asarray(arrays[name]) if name in arrays else None)


def depth(steps: tuple[Step, ...]) -> int:
    """Levels that the steps need."""
    levels = [0]
    for step in steps:
        deepest = max(levels[register] for register in _reads(step))
        levels.append(deepest + (2 if isinstance(step, Power) and step.linear is not None else 1))
    return levels[-1]
