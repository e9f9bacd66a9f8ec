"""What a classifier's outputs are: logits that a function turns into scores, or scores already."""

import numpy as np

from marship.contract import Array

SCORES = ("softmax", "sigmoid", "none")
_FARTHEST = 80.0
"""Beyond it a sigmoid is 0 or 1 in float32, and its power may overflow."""


def scored(logits: Array, kind: str) -> Array:
    """Scores of logits along the last axis.

    Args:
        logits: float32, finite.
        kind: One of `SCORES`; "none" gives the logits themselves.

    Example:
        >>> import numpy as np
        >>> scored(np.float32([0, 0]), "softmax").tolist()
        [0.5, 0.5]
    """
    if kind == "none":
        return logits
    if kind == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -_FARTHEST, _FARTHEST))))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
