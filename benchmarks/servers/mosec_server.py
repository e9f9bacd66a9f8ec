"""mosec: its Rust frontend with one stage of workers, batched where BENCH_BATCH says so."""

import sys
from typing import Any

import numpy as np
from model import BATCH, MEDIA_TYPE, PORT, WAIT_MS, WORKERS, Model, Tensors
from mosec import Server, Worker


class Infer(Worker):
    """Reads, runs and writes in the worker's process."""

    resp_mime_type = MEDIA_TYPE

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def deserialize(self, data: bytes) -> Tensors:
        """Read one request."""
        return self.model.read(data)

    def serialize(self, data: list[np.ndarray]) -> bytes:
        """Write one response."""
        return self.model.write(data)

    def forward(self, data: Any) -> Any:  # noqa: ANN401  mosec hands over a list where it batches
        """Run one request, or a list of them."""
        if BATCH == 1:
            return self.model.run(data)
        return self.model.run_batch(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning"]
    server = Server()
    server.append_worker(Infer, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
