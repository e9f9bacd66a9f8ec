"""MLServer: its V2 protocol with adaptive batching; npy through a custom endpoint, unbatched.

One worker is the server's own process, as its documentation advises for small models; more
are a pool of processes.
"""

import asyncio
import json
import os
from pathlib import Path

from fastapi import Request, Response
from mlserver import MLModel, MLServer, Settings, types
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings
from model import BATCH, MEDIA_TYPE, PORT, WAIT_MS, WORKERS, Model


class OnnxRuntime(MLModel):
    """One session."""

    async def load(self) -> bool:
        """Open the session."""
        self.model = Model()
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        """Run a request, or several that MLServer has batched."""
        tensors = {
            i.name: NumpyCodec.decode_input(i).astype(self.model.inputs[i.name], copy=False)
            for i in payload.inputs
        }
        outputs = zip(self.model.outputs, self.model.run(tensors), strict=True)
        return types.InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs],
        )

    @custom_handler(rest_path="/predict")
    async def predict_bytes(self, request: Request) -> Response:
        """Run one npy request."""
        tensors = self.model.read(await request.body())
        return Response(self.model.write(self.model.run(tensors)), media_type=MEDIA_TYPE)


async def main() -> None:
    """Serve one model."""
    settings = Settings(
        host="127.0.0.1",
        http_port=PORT,
        grpc_port=int(os.environ["BENCH_SECOND_PORT"]),
        parallel_workers=0 if WORKERS == 1 else WORKERS,
        metrics_endpoint=None,
        debug=False,
        gzip_enabled=False,
        environments_dir=str(Path.cwd() / "envs"),
        logging_settings={"version": 1, "root": {"level": "WARNING"}},
    )
    model = ModelSettings(
        name="model",
        implementation="mlserver_runtime.OnnxRuntime",
        max_batch_size=BATCH if BATCH > 1 else 0,
        max_batch_time=WAIT_MS / 1000 if BATCH > 1 else 0,
    )
    Path("model-settings.json").write_text(
        json.dumps(model.model_dump(mode="json", exclude_none=True, by_alias=True))
    )
    server = MLServer(settings)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
