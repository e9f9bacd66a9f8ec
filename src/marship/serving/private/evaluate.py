"""A plan on one ciphertext: what a worker does with a question.

Each rescaling divides by a prime that is only about the scale. A diagonal is therefore encoded at
the scale that makes the product exact again: q * target / scale (as in EVA, Dathathri et al. 2020):
all that is added has one scale, and the answer's is known beforehand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marship.errors import MalformedError, ModelError, UsageError
from marship.serving.private import ckks
from marship.serving.private.ckks import SEAL_ERRORS, SealObject, Vector
from marship.serving.private.packing import Product
from marship.serving.private.plan import Affine, HePlan, Power


@dataclass(frozen=True, slots=True)
class EvaluationKeys:
    """A client's keys, loaded.

    Attributes:
        rotations: By step.
        products: Makes products linear again; None for a plan without any.
    """

    rotations: Mapping[int, SealObject]
    products: SealObject | None


@dataclass(frozen=True, slots=True)
class _Place:
    """A register's level, and the scale of its ciphertext."""

    level: int
    scale: float


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A product's diagonals as plaintexts of a level."""

    product: Product
    level: int
    diagonals: Mapping[int, SealObject]


class Evaluator:
    """Evaluates one plan; holds its plaintexts.

    Args:
        plan: The plan.
        names: What errors call its steps, at export; empty is by their number.

    Raises:
        ModelError: A step's constants are too large or too small for the ring.
    """

    def __init__(self, plan: HePlan, names: Sequence[str] = ()) -> None:
        self.plan, self.ring = plan, plan.ring
        self._names = names or [f"step {index}" for index in range(len(plan.steps))]
        self._places = [_Place(0, self.ring.scale)]
        self._products: dict[int, dict[int, _Encoded]] = {}
        self._plain: dict[int, SealObject] = {}
        for index, step in enumerate(plan.steps):
            self._places.append(self._prepare(index, step))

    @property
    def level(self) -> int:
        """Of the answer."""
        return self._places[-1].level

    @property
    def scale(self) -> float:
        """Of the answer."""
        return self._places[-1].scale

    def _prepare(self, index: int, step: Affine | Power) -> _Place:
        ring, chain, applied = self.ring, self.ring.chain, self.plan.applied.get(index)
        if isinstance(step, Power):
            at = self._places[step.register]
            square = _Place(at.level + 1, at.scale**2 / chain[at.level][1])
            if applied is None:
                return square
            self._plain[index] = self._encode(index, applied.bias, square.level, square.scale)
            return _Place(square.level + 1, square.scale * at.scale / chain[square.level][1])
        assert applied is not None  # noqa: S101  the plan applies every affine step
        level = max(self._places[register].level for register in applied.products)
        self._products[index] = {
            register: self._encoded(index, one, level, self._places[register].scale)
            for register, one in applied.products.items()
        }
        self._plain[index] = self._encode(index, applied.bias, level + 1, ring.scale)
        return _Place(level + 1, ring.scale)

    def _encoded(self, index: int, product: Product, level: int, scale: float) -> _Encoded:
        target = self.ring.chain[level][1] * self.ring.scale / scale
        plain = {k: self._encode(index, v, level, target) for k, v in product.diagonals.items()}
        for number, one in plain.items():
            if one.is_zero():  # its product would be a ciphertext that hides nothing: SEAL refuses
                largest = float(np.abs(product.diagonals[number]).max())
                raise ModelError(
                    f"weights that lead to {self._names[index]} must not round to zero at "
                    f"2^-{self.ring.scale_bits}, got a diagonal up to {largest:.3g}. Scale them "
                    "up, and those of the layer behind it or before it down."
                )
        return _Encoded(product, level, plain)

    def _encode(self, index: int, values: Vector, level: int, scale: float) -> SealObject:
        try:
            return self.ring.encode(values, level, scale)
        except UsageError as error:
            raise ModelError(
                f"constants that lead to {self._names[index]} must fit the ring, got "
                f"{np.abs(values).max():.3g}. Scale them down, and keep the square's factor in an "
                "activation from being small: a x^2 + b x has a constant of b^2/4a."
            ) from error

    def run(self, keys: EvaluationKeys, question: bytes | memoryview) -> bytes:
        """The encrypted answer to an encrypted question.

        Raises:
            MalformedError: The question or the keys are not for this plan.
        """
        registers = [ckks.load_question(self.ring, question)]
        try:
            for index, step in enumerate(self.plan.steps):
                if isinstance(step, Power):
                    registers.append(self._power(index, registers[step.register], keys))
                else:
                    registers.append(self._affine(index, registers, keys))
        except SEAL_ERRORS as error:
            raise MalformedError(
                f"a question and its keys must be encrypted for this model, got: {error}. Use the "
                "client file of the model that is asked."
            ) from error
        return ckks.dump(registers[-1])

    def _power(self, index: int, u: SealObject, keys: EvaluationKeys) -> SealObject:
        """u^2, or u (u^2 + p)."""
        evaluator, result = self.ring.evaluator, self._square(u, keys)
        if (plain := self._plain.get(index)) is None:
            return result
        evaluator.add_plain_inplace(result, plain)
        evaluator.multiply_inplace(result, self._lowered(u, self._level(result)))
        return self._rescaled(result, keys)

    def _square(self, u: SealObject, keys: EvaluationKeys) -> SealObject:
        result = ckks.library().Ciphertext()
        self.ring.evaluator.square(u, result)
        return self._rescaled(result, keys)

    def _rescaled(self, product: SealObject, keys: EvaluationKeys) -> SealObject:
        self.ring.evaluator.relinearize_inplace(product, keys.products)
        self.ring.evaluator.rescale_to_next_inplace(product)
        return product

    def _affine(
        self, index: int, registers: list[SealObject], keys: EvaluationKeys
    ) -> SealObject:  # fmt: skip
        evaluator, total = self.ring.evaluator, None
        for register, encoded in self._products[index].items():
            part = self._product(encoded, self._lowered(registers[register], encoded.level), keys)
            if total is None:
                total = part
            else:
                evaluator.add_inplace(total, part)
        evaluator.add_plain_inplace(total, self._plain[index])
        return total

    def _product(
        self, encoded: _Encoded, vector: SealObject, keys: EvaluationKeys
    ) -> SealObject:  # fmt: skip
        """A matrix times a vector: baby steps, and giant steps by Horner's scheme."""
        evaluator, product = self.ring.evaluator, encoded.product
        rotated = [vector]
        for _ in range(product.baby):
            rotated.append(self._rotated(rotated[-1], 1, keys))
        width, total = product.giant or len(rotated), None
        for giant in range(product.giants, -1, -1):
            if total is not None:
                total = self._rotated(total, width, keys)
            for baby, one in enumerate(rotated):
                plain = encoded.diagonals.get(giant * width + baby)
                if plain is None:
                    continue
                term = ckks.library().Ciphertext()
                evaluator.multiply_plain(one, plain, term)
                if total is None:
                    total = term
                else:
                    evaluator.add_inplace(total, term)
        evaluator.rescale_to_next_inplace(total)
        for step in product.sums:
            evaluator.add_inplace(total, self._rotated(total, step, keys))
        return total

    def _rotated(self, vector: SealObject, step: int, keys: EvaluationKeys) -> SealObject:
        result = ckks.library().Ciphertext()
        self.ring.evaluator.rotate_vector(vector, step, keys.rotations[step], result)
        return result

    def _level(self, vector: SealObject) -> int:
        return self.ring.levels + 1 - int(vector.coeff_modulus_size())

    def _lowered(self, vector: SealObject, level: int) -> SealObject:
        """The vector at a level, which it may have already."""
        if self._level(vector) == level:
            return vector
        result = ckks.library().Ciphertext()
        self.ring.evaluator.mod_switch_to(vector, self.ring.chain[level][0], result)
        return result
