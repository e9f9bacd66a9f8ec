"""The code that all servers share: open the model, read a request, run a batch, write a response.

With the same code in all of them only the servers differ. It is what a careful user would write:
one thread, orjson, no avoidable copies, and no validation beyond ONNX Runtime's own.
"""

import io
import os

import numpy as np
import onnxruntime as ort
import orjson

FORM = os.environ.get("BENCH_FORM", "json")
PORT = int(os.environ.get("BENCH_PORT", "0"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
BATCH = int(os.environ.get("BENCH_BATCH", "1"))
WAIT_MS = int(os.environ.get("BENCH_WAIT_MS", "0"))
MEDIA_TYPE = {"json": "application/json", "npy": "application/x-npy"}[FORM]

Tensors = dict[str, np.ndarray]


class Model:
    """An ONNX model behind one session with one thread."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {
            i.name: np.dtype({"tensor(float)": "float32", "tensor(int64)": "int64"}[i.type])
            for i in self.session.get_inputs()
        }
        self.outputs = [o.name for o in self.session.get_outputs()]

    def parse(self, value: dict[str, list]) -> Tensors:
        """Turn a parsed JSON object into tensors."""
        return {name: np.array(value[name], dtype) for name, dtype in self.inputs.items()}

    def read(self, body: bytes) -> Tensors:
        """Turn a request's bytes into tensors."""
        if FORM == "json":
            return self.parse(orjson.loads(body))
        file = io.BytesIO(body)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return {
            next(iter(self.inputs)): np.frombuffer(body, dtype, offset=file.tell()).reshape(shape)
        }

    def run(self, tensors: Tensors) -> list[np.ndarray]:
        """Run one call of the model."""
        return self.session.run(self.outputs, tensors)

    def run_batch(self, requests: list[Tensors]) -> list[list[np.ndarray]]:
        """Run requests of one row each in one call of the model."""
        if len(requests) == 1:
            return [self.run(requests[0])]
        stacked = {name: np.concatenate([r[name] for r in requests]) for name in self.inputs}
        outputs = self.run(stacked)
        return [[o[i : i + 1] for o in outputs] for i in range(len(requests))]

    def write(self, outputs: list[np.ndarray]) -> bytes:
        """Turn one request's outputs into the response's bytes."""
        if FORM == "json":
            named = dict(zip(self.outputs, map(np.ascontiguousarray, outputs), strict=True))
            return orjson.dumps(named, option=orjson.OPT_SERIALIZE_NUMPY)
        file = io.BytesIO()
        np.save(file, outputs[0])
        return file.getvalue()
