"""The names and the scores of a classifier's outputs, as its pipeline has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from marship.contract import Array
from marship.errors import UsageError

PROBABILITIES = ("probabilities", "probs", "probability")
"""What outputs are called that hold scores already."""
_ROUNDING = 1e-3
"""How far a sum of probabilities may be off 1, as in float16."""


def labels_of(config: Any) -> list[str]:  # noqa: ANN401  a class for each kind of model
    """The labels in the order of the outputs.

    Raises:
        UsageError: Some have no name.
    """
    names = {int(place): str(name) for place, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(config.num_labels)):
        raise UsageError(
            f"id2label of config.json must name {config.num_labels} labels from 0, got "
            f"{sorted(names)[:10]}."
        )
    return [names[place] for place in range(config.num_labels)]


def scores_of(config: Any) -> str:  # noqa: ANN401  a class for each kind of model
    """The function from logits to scores: softmax, sigmoid or none.

    As TextClassificationPipeline.postprocess chooses it (transformers 5.23).
    """
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def are_scores(name: str, samples: Sequence[Array], maker: str) -> bool:
    """Whether an output holds scores already, as a graph with a softmax or sigmoid in it gives.

    Args:
        name: The output's.
        samples: Its values for the sample inputs, the labels along the last axis.
        maker: The operator that gives it.

    Raises:
        UsageError: Its name says so, and its values are none.

    Example:
        >>> are_scores("output_0", [np.float32([[0.2, 0.8]])], "Identity")
        True
    """
    are_shares = all(((values >= 0) & (values <= 1 + _ROUNDING)).all() for values in samples)
    is_named = name.lower() in PROBABILITIES
    if not are_shares:
        if is_named:
            least, most = min(map(np.min, samples)), max(map(np.max, samples))
            raise UsageError(
                f"output {name} must hold probabilities from 0 to 1, got values from {least:.3g} "
                f"to {most:.3g}. Rename it to logits if it holds these."
            )
        return False
    sums = all(np.allclose(values.sum(axis=-1), 1, atol=_ROUNDING) for values in samples)
    return is_named or sums or maker in {"Softmax", "Sigmoid"}
