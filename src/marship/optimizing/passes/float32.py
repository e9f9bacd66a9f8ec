"""ONNX Runtime's graph optimization, done once and saved: constants folded, operators fused.

Needs: only the exported model.
Guarantees: float32 as before; outputs within the contract's tolerance; a file that loads on
any CPU. The level is "extended", because "all" chooses memory layouts for the current CPU.
A session applies that last level when it loads either file, so this one is faster to load and
about as fast to run.
"""

from pathlib import Path

from marship.optimizing.source import ExportedModel, NotBuiltError
from marship.proof.parity import FATAL, first_line

NAME = "float32"
OUTSIDE_FROM_BYTES = 1024


def build(source: ExportedModel, target: Path) -> None:
    """Write the optimized model to `target`.

    Raises:
        NotBuiltError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    if source.has_outside_weights:
        name = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{name}file_name", f"{target.name}.data")
        options.add_session_config_entry(f"{name}min_size_in_bytes", str(OUTSIDE_FROM_BYTES))
    try:
        onnxruntime.InferenceSession(str(source.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise NotBuiltError(first_line(error)) from error
