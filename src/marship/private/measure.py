"""What a plan costs and how exact it is, measured on this machine with keys made for it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.evaluate import Evaluator
from marship.serving.private.plan import HePlan
from marship.serving.private.public import PublicPlan

Rows = npt.NDArray[np.float64]
T = TypeVar("T")

_MOST_ROWS, _MOST_S = 8, 4.0
_NOISE_MARGIN, _ERROR_MARGIN = 100.0, 8.0
"""Noise of a wrong key is a billion times as large as that of a right one."""
_LEAST_NOISE = 1e-3


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a plan.

    Attributes:
        levels: Multiplications after each other.
        degree: Of the ring.
        modulus_bits: Of the ring.
        scale_bits: Of the values.
        rotations: Of one question.
        key_bytes: What a client uploads once.
        question_bytes: Of a request.
        answer_bytes: Of a response.
        keys_s: Seconds that the client takes for new keys.
        encrypt_ms: Of a question, at the client.
        answer_ms: Of a question, at the server.
        decrypt_ms: Of an answer, at the client.
        error: The largest difference from the plain model that was found.
        noise: The largest imaginary part that was found.
        largest: The largest output that was found.
    """

    levels: int
    degree: int
    modulus_bits: int
    scale_bits: int
    rotations: int
    key_bytes: int
    question_bytes: int
    answer_bytes: int
    keys_s: float
    encrypt_ms: float
    answer_ms: float
    decrypt_ms: float
    error: float
    noise: float
    largest: float

    @property
    def noise_limit(self) -> float:
        """More than this in the imaginary parts is no right answer."""
        return max(_NOISE_MARGIN * self.noise, _LEAST_NOISE)

    @property
    def error_limit(self) -> float:
        """A right answer is not further than this from the plain model's.

        The few outputs that were asked for may be near by luck. Imaginary parts have the same
        noise, and there are thousands of them.
        """
        return _ERROR_MARGIN * max(self.error, self.noise, 1e-7 * self.largest, 1e-9)


@dataclass(slots=True)
class _Clock:
    """Milliseconds by what took them."""

    taken: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = call()
        self.taken.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return result

    def median(self, name: str) -> float:
        return statistics.median(self.taken[name])


def measure(  # noqa: PLR0913  what is measured, and what to hold it against
    plan: HePlan,
    digest: str,
    rows: Rows,
    wanted: Rows,
    *,
    largest: float,
    names: Sequence[str],
) -> Figures:
    """Ask for some rows encrypted, for at most a few seconds.

    Args:
        plan: The plan.
        digest: Of its file.
        rows: float64 (rows, inputs).
        wanted: The plain model's outputs, float64 (rows, outputs).
        largest: The largest of them, constants left out.
        names: The tensor that each step leads to, for errors.

    Raises:
        ModelError: A layer's constants are too large or too small for the ring.
        UsageError: A row's values are too large for it.
    """
    public, evaluator, clock = PublicPlan.of(plan, digest), Evaluator(plan, names), _Clock()

    def new_keys() -> tuple[SecretKey, bytes]:
        secret = SecretKey(plan.ring)
        return secret, keys.generate(public, secret)

    secret, stream = clock.time("keys", new_keys)
    loaded = keys.loaded(public, stream)
    error = noise = 0.0
    started = time.perf_counter()
    for row, want in zip(rows[:_MOST_ROWS], wanted, strict=False):
        question = clock.time("encrypt", partial(secret.encrypt, public.packed(row)))
        answer = clock.time("answer", partial(evaluator.run, loaded, question))
        slots = clock.time("decrypt", partial(secret.decrypt, answer, public.level))
        error = max(error, float(np.abs(public.unpacked(slots) - want).max()))
        noise = max(noise, public.noise(slots))
        if time.perf_counter() - started > _MOST_S:
            break
    products = [one for applied in plan.applied.values() for one in applied.products.values()]
    return Figures(
        levels=plan.ring.levels,
        degree=plan.ring.degree,
        modulus_bits=sum(plan.ring.bits),
        scale_bits=plan.ring.scale_bits,
        rotations=sum(one.rotations for one in products),
        key_bytes=len(stream),
        question_bytes=len(question),
        answer_bytes=len(answer),
        keys_s=clock.median("keys") / 1e3,
        encrypt_ms=clock.median("encrypt"),
        answer_ms=clock.median("answer"),
        decrypt_ms=clock.median("decrypt"),
        error=error,
        noise=noise,
        largest=largest,
    )
