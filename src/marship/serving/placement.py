"""Where a host has put a model, and within which limits it serves it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marship.serving.message import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from marship.serving.model.siblings import Siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A host's placement of a model, and its limits.

    Attributes:
        folder: The extracted archive.
        name: The model's name, for responses and the log.
        version: Likewise.
        config: The parsed model-config.yaml.
        device_id: The accelerator to run on; None is the CPU.
        workers: Maximum number of workers that share the machine's cores.
        siblings: Counts those workers; None if their number does not change.
        timeout_s: The host kills a worker whose batch takes longer; None without a timeout.
        max_request_bytes: Maximum size of a request, after decompression.
        max_response_bytes: Maximum size of a response.
    """

    folder: Path
    name: str
    version: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    device_id: int | None = None
    workers: int = 1
    siblings: Siblings | None = None
    timeout_s: float | None = None
    max_request_bytes: int = MAX_REQUEST_BYTES
    max_response_bytes: int = MAX_RESPONSE_BYTES
