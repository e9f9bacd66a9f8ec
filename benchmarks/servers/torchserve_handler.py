"""Stock TorchServe: the handler that a user would write, with one session and the json module."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class PlainHandler:
    """One ONNX Runtime session; TorchServe has parsed the JSON already."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401  TorchServe's
        """Open the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        folder = Path(context.system_properties["model_dir"])
        self.session = ort.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.inputs = {i.name: types[i.type] for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:  # noqa: ANN401, ARG002
        """Run the requests of a batch one after the other."""
        return [self.predict(row.get("body") or row.get("data")) for row in data]

    def predict(self, body: Any) -> str | bytes:  # noqa: ANN401  JSON is parsed, npy is bytes
        """Run one request."""
        if isinstance(body, dict):
            tensors = {name: np.array(body[name], kind) for name, kind in self.inputs.items()}
            outputs = self.session.run(self.outputs, tensors)
            return json.dumps({n: o.tolist() for n, o in zip(self.outputs, outputs, strict=True)})
        tensors = {next(iter(self.inputs)): np.load(io.BytesIO(body))}
        file = io.BytesIO()
        np.save(file, self.session.run(self.outputs, tensors)[0])
        return file.getvalue()
