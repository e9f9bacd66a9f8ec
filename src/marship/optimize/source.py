"""What every pass starts from, and how it says that it cannot be."""

from dataclasses import dataclass
from pathlib import Path

from marship.contract import Arrays, Contract
from marship.errors import ModelError


class NotBuiltError(ModelError):
    """A variant cannot be made from this model, on this machine, or from this data."""

    code = "not_built"


@dataclass(frozen=True, slots=True)
class Source:
    """The exported model.

    Attributes:
        path: Its ONNX file, float32.
        contract: What it takes and gives.
        calibration: Training inputs by name, the first axis being rows; None where there are
            none.
    """

    path: Path
    contract: Contract
    calibration: Arrays | None

    @property
    def has_outside_weights(self) -> bool:
        """Whether weights lie beside the file, so that a variant's must, too."""
        return len(self.contract.files) > 1
