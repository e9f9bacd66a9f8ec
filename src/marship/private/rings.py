"""The smallest ring that a plan fits: the larger one costs four times as much."""

import math
from collections.abc import Sequence
from dataclasses import replace

from marship.errors import ModelError
from marship.private.compiler import Compilation
from marship.private.phases import phased
from marship.serving.private.ckks import MOST_BITS, Ring
from marship.serving.private.packing import Packing, power_of_two
from marship.serving.private.plan import Affine, HePlan, Step, depth

LEAST_SCALE_BITS, MOST_SCALE_BITS = 28, 36
"""Below, noise reaches the third digit; above, keys grow, and nothing is gained."""
_MARGIN_BITS = 3
"""The sign, and answers four times as large as any that was seen."""
_LEAST_HEAD_BITS = 6
_MOST_HEAD_BITS = 20
_MULTIPLICATION = 0.2
"""What a product with a diagonal costs, in rotations."""


def fitted(found: Compilation, outputs: int, largest: float) -> HePlan:
    """The plan of a graph in the smallest ring, its input packed for the fewest rotations.

    Args:
        found: The graph as steps.
        outputs: Values of a row of the output.
        largest: The largest output that was seen, without constants.

    Raises:
        ModelError: None is large enough.
    """
    steps, inputs = found.steps, math.prod(found.given)
    levels, widest = depth(steps), _widest(steps, inputs)
    head_bits = max(_LEAST_HEAD_BITS, math.ceil(math.log2(max(largest, 1e-9))) + _MARGIN_BITS)
    if head_bits > _MOST_HEAD_BITS:
        raise ModelError(
            f"outputs of an encrypted model must be below {2 ** (_MOST_HEAD_BITS - _MARGIN_BITS)}, "
            f"got {largest:.3g}. Scale them in the model, and back at the client."
        )
    for degree, most_bits in MOST_BITS.items():
        # the last prime and the one for keys hold a whole output, those between drop the scale
        scale_bits = min((most_bits - 2 * head_bits) // (levels + 2), MOST_SCALE_BITS)
        if scale_bits < LEAST_SCALE_BITS or widest > degree // 2:
            continue
        outer = scale_bits + head_bits
        ring = Ring(degree, (outer, *[scale_bits] * levels, outer), scale_bits)
        plan = HePlan(ring, inputs, outputs, steps, constants=found.constants)
        if not plan.zeros:  # shifted copies fill all slots
            plan = replace(plan, given=Packing(power_of_two(inputs)))
        if plan.zeros:  # else the client could not tell a wrong answer
            return min((plan, *phased(plan, found.given, found.made)), key=_cost)
    most_levels = (MOST_BITS[degree] - 2 * head_bits) // LEAST_SCALE_BITS - 2
    if widest <= degree // 2 and levels <= most_levels:
        raise ModelError(
            f"the last matrix of an encrypted model must have at most {degree // 4} inputs, or "
            f"more outputs than that, and fewer outputs than {degree // 2}, got {_last(steps)}. "
            "Put a smaller layer before it, or leave outputs out."
        )
    raise ModelError(
        f"an encrypted model must have at most {degree // 2} values in a layer and {most_levels} "
        f"levels, a square or a matrix each, got {widest} and {levels}. Use fewer layers, or "
        "smaller ones."
    )


def _last(steps: Sequence[Step]) -> str:
    """The shape of the last matrix in words."""
    *_, last = (step for step in steps if isinstance(step, Affine))
    inputs = max(matrix.shape[1] for matrix in last.matrices.values())
    return f"{inputs} inputs and {len(last.bias)} outputs"


def check_keys(plan: HePlan) -> None:
    """Check that a plan needs a client's keys, which the server stores and questions name.

    Raises:
        ModelError: It needs none.
    """
    if not plan.multiplies and not plan.rotations():
        raise ModelError(
            "an encrypted model must sum inputs or square values, got one that only multiplies "
            "single inputs by constants. Give clients the constants, or serve it open or sealed."
        )


def _cost(plan: HePlan) -> float:
    """About what a question costs, in rotations."""
    products = [one for applied in plan.applied.values() for one in applied.products.values()]
    return sum(one.rotations + _MULTIPLICATION * len(one.diagonals) for one in products)


def _widest(steps: Sequence[Step], inputs: int) -> int:
    outputs = [len(step.bias) for step in steps if isinstance(step, Affine)]
    return max(map(power_of_two, (inputs, *outputs)))
