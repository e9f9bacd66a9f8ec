"""What a client is asked for, as rows of numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from marship.errors import UsageError

Values = npt.NDArray[np.float64]


def read(x: Any, shape: tuple[int, ...]) -> tuple[Values, bool]:  # noqa: ANN401  numpy's own
    """Rows of a model's input, float64 (rows, values), and whether `x` was a single one.

    Args:
        x: Rows, (rows, *shape), or one row, of shape `shape`: whatever NumPy makes an array of.
        shape: Of one row.

    Raises:
        UsageError: The shape is another one, or a value is no finite number.

    Example:
        >>> read([1, 2], (2,))
        (array([[1., 2.]]), True)
    """
    values, is_single = shaped(x, shape)
    if not np.isfinite(values).all():
        raise UsageError("x must hold finite numbers, got NaN or infinity.")
    return values, is_single


def shaped(x: Any, shape: tuple[int, ...]) -> tuple[Values, bool]:  # noqa: ANN401  numpy's own
    """The same of any numbers, NaN and infinity among them.

    Raises:
        UsageError: The shape is another one, or it holds no numbers.
    """
    try:
        array = np.asarray(x, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"x must be numbers, got {error}.") from error
    is_single = array.shape == shape
    if (not is_single and array.shape[1:] != shape) or not len(array):
        raise UsageError(
            f"x must be one row of shape {list(shape)}, or several, got {list(array.shape)}."
        )
    return array.reshape(1 if is_single else len(array), -1), is_single
