"""What the host of a worker tells it. Apart from the worker: the host loads no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """What a worker serves, and how.

    Attributes:
        folder: The extracted archive.
        name: The model's name.
        version: Its version.
        handler: The handler's file.
        config: The parsed model-config.yaml.
        workers: How many workers the model has.
        device_id: The accelerator to run on; None is the CPU.
        timeout_s: How long a batch may take.
        batch: The most requests of a batch.
        queue: The most requests that wait.
        acceptor: The acceptor's socket for workers.
        key_file: Holds the token; None asks for none.
        request_bytes: The largest request.
        response_bytes: The largest response.
    """

    folder: str
    name: str
    version: str
    handler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    device_id: int | None = None
    timeout_s: float = 120.0
    batch: int = 1
    queue: int = 1000
    acceptor: str
    key_file: str | None = None
    request_bytes: int
    response_bytes: int
