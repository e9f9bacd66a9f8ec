"""How an export is set: apart from the step, so that the command line loads at once."""

from dataclasses import dataclass

from marship.settings import Settings, setting

OPSETS = range(18, 25)
"""From what the exporter writes to the newest that ONNX Runtime 1.32 was tried with."""


@dataclass(frozen=True, slots=True)
class ExportSettings(Settings):
    """How a model becomes an ONNX file.

    Example:
        >>> marship.ExportSettings(dynamic=("items:1=length",), bounds=("length=1:50",)).atol
        0.0001
    """

    dynamic: tuple[str, ...] = setting(
        (),
        "a variable axis beside the batch, as INPUT:AXIS=NAME, like items:1=length; "
        "an input with a pad value varies in its axis 1 in any case",
    )
    bounds: tuple[str, ...] = setting(
        (),
        "smallest and largest size of a variable axis, as NAME=LOW:HIGH, like length=1:50, or "
        "NAME=LOW:HIGH:STEP, like height=32:640:32, where all sizes are multiples of STEP; "
        "without it the size in the example is the largest, and the batch has no limit",
    )
    pad: tuple[str, ...] = setting(
        (),
        "the value that fills an input's short rows on the right, as INPUT=VALUE, like items=0; "
        "the export fails where that changes an output",
    )
    fixed_batch: bool = setting(False, "the first axis is not a batch of variable size")
    output_names: tuple[str, ...] = setting(
        (), "names of the outputs in their order; else a dict's keys, output_0, 1, ... or output"
    )
    atol: float = setting(1e-4, "largest absolute difference allowed to PyTorch", minimum=0)
    rtol: float = setting(1e-3, "largest relative difference allowed beside it", minimum=0)
    golden: str = setting(
        "synthetic",
        "inputs of the golden cases, which travel in the archive: synthetic, drawn to cover the "
        "model, or real, rows of the examples",
    )
    opset: int = setting(
        23,
        "ONNX operator set, 18 to 24; 23 is the first with attention as one operator",
        minimum=OPSETS[0],
        maximum=OPSETS[-1],
    )
    proof_seconds: float = setting(
        60.0,
        "seconds that the proofs may take, as far as it is not the least; what is left out stands "
        "in parity.json",
        minimum=0,
    )
    seed: int | None = setting(
        None, "of the sizes and values that are drawn; parity.json has the last one", minimum=0
    )
    again: bool = setting(False, "export anew where nothing has changed, too")
