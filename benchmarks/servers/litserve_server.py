"""LitServe with its fast queue (ZeroMQ), one API server for each worker."""

from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Request, Response
from model import BATCH, FORM, MEDIA_TYPE, PORT, WAIT_MS, WORKERS, Model, Tensors

Payload = Request if FORM == "json" else Annotated[bytes, Body()]


class Infer(litserve.LitAPI):
    """LitServe has parsed JSON already; npy arrives as bytes."""

    def setup(self, device: str) -> None:
        """Load the model; it runs on the processor."""
        del device
        self.model = Model()

    def decode_request(self, request: Payload) -> Tensors:
        """Read one request."""
        return self.model.parse(request) if FORM == "json" else self.model.read(request)

    def batch(self, inputs: list[Tensors]) -> list[Tensors]:
        """Leave the stacking to the model's own code, as all servers here do."""
        return inputs

    def predict(self, x: Any) -> Any:  # noqa: ANN401  a list where requests are batched
        """Run one request, or a list of them."""
        return self.model.run_batch(x) if BATCH > 1 else self.model.run(x)

    def unbatch(self, output: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """Return the outputs, which are separate already."""
        return output

    def encode_response(self, output: list[np.ndarray]) -> Response:
        """Write one response."""
        return Response(self.model.write(output), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    api = Infer(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=60
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=WORKERS,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
