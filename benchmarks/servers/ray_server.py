"""Ray Serve with its throughput settings, a replica for each worker, batched by serve.batch."""

import os
import signal

import numpy as np
import ray
from fastapi import Response
from model import BATCH, MEDIA_TYPE, PORT, WAIT_MS, WORKERS, Model, Tensors
from ray import serve
from starlette.requests import Request


@serve.deployment(
    num_replicas=WORKERS,
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
class Infer:
    """One session in each replica."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def run_batch(self, requests: list[Tensors]) -> list[list[np.ndarray]]:
        """Run requests that Ray Serve has gathered."""
        return self.model.run_batch(requests)

    async def __call__(self, request: Request) -> Response:
        """Run one request."""
        tensors = self.model.read(await request.body())
        outputs = await self.run_batch(tensors) if BATCH > 1 else self.model.run(tensors)
        return Response(self.model.write(outputs), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=os.environ["BENCH_TEMP"],
        _node_ip_address="127.0.0.1",
        object_store_memory=200_000_000,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Infer.bind(), route_prefix="/predict")
    signal.sigwait([signal.SIGINT, signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()
