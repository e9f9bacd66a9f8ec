"""The client's part of a model: it runs before anything is encrypted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from marship.contract import Array
from marship.errors import UsageError
from marship.private import client_file
from marship.private.client_file import ENCODER_SUFFIX, ClientFile

_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
          "tensor(double)": np.float64, "tensor(bool)": np.bool_}  # fmt: skip


class Encoder:
    """Runs NAME.encoder.onnx.

    Args:
        model: The file's bytes.
    """

    def __init__(self, model: bytes) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._types: dict[str, npt.DTypeLike] = {
            one.name: _TYPES[one.type] for one in self._session.get_inputs()
        }

    @classmethod
    def beside(cls, path: Path, file: ClientFile) -> Self | None:
        """The encoder beside a client file; None where it has none.

        Raises:
            UsageError: It cannot be read.
            DataError: It is another one than the client file states.
        """
        if file.encoder is None:
            return None
        model = client_file.read_beside(path, ENCODER_SUFFIX, file.encoder)
        return cls(model)

    def run(self, x: Any) -> Array:  # noqa: ANN401  rows by name
        """What is encrypted, of rows of the inputs by name.

        Raises:
            UsageError: They are not the model's inputs.
        """
        if not isinstance(x, Mapping) or set(x) != set(self._types):
            got = ", ".join(map(str, x)) if isinstance(x, Mapping) else type(x).__name__
            raise UsageError(f"x must have {', '.join(self._types)} by name, got {got}.")
        try:
            feed = {name: np.asarray(x[name], kind) for name, kind in self._types.items()}
            (result,) = self._session.run(None, feed)
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            raise UsageError(f"x must be rows that the model takes, got: {error}") from error
        return np.asarray(result)
