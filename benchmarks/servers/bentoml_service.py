"""BentoML: its typed API with adaptive batching for JSON with one input; else a mounted ASGI app.

The app takes npy and any number of inputs, one request at a time: BentoML batches one array.
"""

from typing import Any

import bentoml
import numpy as np
from fastapi import FastAPI, Request, Response
from model import BATCH, FORM, MEDIA_TYPE, WORKERS, Model

app = FastAPI()
IS_TYPED = FORM == "json" and list(Model().inputs) == ["input"]


def service(cls: type) -> Any:  # noqa: ANN401  BentoML's own type
    """Turn a class into a service with the bench's settings."""
    settings = {
        "workers": WORKERS,
        "traffic": {"timeout": 60, "max_concurrency": 1000},
        "logging": {"access": {"enabled": False}},
        "metrics": {"enabled": False},
        "tracing": {"sample_rate": 0.0},
    }
    mounted = cls if IS_TYPED else bentoml.asgi_app(app)(cls)
    return bentoml.service(**settings)(mounted)


@service
class Infer:
    """One session in each worker."""

    def __init__(self) -> None:
        self.model = Model()

    if not IS_TYPED:

        @app.post("/predict")
        async def predict(self, request: Request) -> Response:
            """Run one request."""
            tensors = self.model.read(await request.body())
            return Response(self.model.write(self.model.run(tensors)), media_type=MEDIA_TYPE)

    elif BATCH > 1:

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
        def predict(self, input: np.ndarray) -> np.ndarray:  # noqa: A002  the request's key
            """Run requests whose rows BentoML has batched."""
            return self.model.run(self.model.parse({"input": input}))[0]

    else:

        @bentoml.api
        async def predict(self, input: np.ndarray) -> np.ndarray:  # noqa: A002  the request's key
            """Run one request."""
            return self.model.run(self.model.parse({"input": input}))[0]
