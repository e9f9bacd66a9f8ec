"""Which outputs hold scores already."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.errors import UsageError
from marship.pretrained.labels import PROBABILITIES, are_scores
from marship.serving.model.scores import scored

SEEDS = st.integers(0, 10_000)
KINDS = st.sampled_from([np.float16, np.float32, np.float64])


@given(seed=SEEDS, labels=st.integers(2, 1000), scale=st.floats(0.1, 20), kind=KINDS)
def test_what_a_softmax_gives_is_found_by_its_values(
    seed: int, labels: int, scale: float, kind: type[np.floating]
) -> None:
    """By no name, of any number of labels and of tokens; logits and their logarithms are not."""
    generator = np.random.default_rng(seed)
    logits = (scale * generator.normal(size=(6, 1, 4, labels))).astype(np.float32)
    shares = scored(logits, "softmax")
    assert are_scores("output_0", [*shares.astype(kind)], "Div")
    assert not are_scores("output_0", [*logits.astype(kind)], "Gemm")
    assert not are_scores("output_0", [*(np.log(shares + 1e-9) - 1e-3).astype(kind)], "LogSoftmax")


@given(seed=SEEDS, labels=st.integers(1, 50))
def test_what_a_sigmoid_gives_is_found_by_its_operator_or_name(seed: int, labels: int) -> None:
    """Logits may lie within 0 to 1, too, and are trusted; those of other names are refused."""
    logits = np.random.default_rng(seed).normal(size=(6, 1, labels))
    shares = [*scored(logits, "sigmoid")]
    for name, maker in (("output_0", "Sigmoid"), (PROBABILITIES[0], "Mul")):
        assert are_scores(name, shares, maker)
    assert not are_scores("output_0", [row + 1e-2 for row in shares], "Gemm")
    with pytest.raises(UsageError, match="must hold probabilities from 0 to 1, got values from"):
        are_scores(PROBABILITIES[0], [*logits - 1], "Gemm")
