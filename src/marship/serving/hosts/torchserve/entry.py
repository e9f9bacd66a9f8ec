"""The entry points of TorchServe's worker: `initialize` once, and `handle` with each batch.

`handle` gets batches parsed by TorchServe's own reader. If `worker.install` could replace that
reader, `answer` gets each batch instead.
"""

import atexit
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from marship.serving.hosts.direct import samples
from marship.serving.hosts.direct.samples import SampleWriter
from marship.serving.hosts.torchserve import report, wire, worker
from marship.serving.hosts.torchserve.outbox import Outbox
from marship.serving.hosts.torchserve.wire import Send
from marship.serving.message import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    OK,
    Reply,
    Request,
    outcomes,
)
from marship.serving.model import siblings
from marship.serving.placement import Placement
from marship.serving.service import Service

logger = logging.getLogger(__name__)

MAX_REQUEST_ENV = "MARSHIP_MAX_REQUEST_SIZE"
MAX_RESPONSE_ENV = "MARSHIP_MAX_RESPONSE_SIZE"
"""Set by `marship serve`; a larger response would disconnect the worker (max_response_size)."""

RESPONSE_TIMEOUT_S = 120
"""TorchServe's default for responseTimeout."""


class Context(Protocol):
    """What this module uses of TorchServe's `ts.context.Context`."""

    model_name: str
    manifest: dict[str, Any] | None
    model_yaml_config: dict[str, Any] | None

    @property
    def system_properties(self) -> dict[str, Any]:
        """`model_dir`, `gpu_id`, `batch_size` and more."""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Headers of one request; a body's own under the body's name."""

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        """Set one response's HTTP status."""

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set one response's header."""


def initialize(service: Service, context: Context) -> None:
    """Load the archive that TorchServe has extracted, and let the worker read through `wire`.

    Raises:
        LoadError: The worker must not serve this model; the message says why.
        SealError: The model is sealed and cannot be opened, or samples cannot be sealed.
    """
    properties, config = context.system_properties, context.model_yaml_config or {}
    folder = Path(properties["model_dir"])
    placement = Placement(
        folder=folder,
        name=context.model_name,
        version=str((context.manifest or {}).get("model", {}).get("modelVersion", "")),
        config=config,
        device_id=properties.get("gpu_id"),
        workers=max(1, int(config.get("maxWorkers") or config.get("minWorkers") or 1)),
        siblings=siblings.joined(folder) if worker.runs_here() else None,
        timeout_s=float(config.get("responseTimeout") or RESPONSE_TIMEOUT_S),
        max_request_bytes=int(os.environ.get(MAX_REQUEST_ENV, MAX_REQUEST_BYTES)),
        max_response_bytes=int(os.environ.get(MAX_RESPONSE_ENV, MAX_RESPONSE_BYTES)),
    )
    sampler = None
    if worker.runs_here():
        sampler = samples.told(placement.name, placement.version, is_private=service.is_private)
    service.load(placement)
    is_alone = properties.get("batch_size") == 1  # each request a batch
    if worker.install(
        partial(answer, service),
        spins=lambda: is_alone and service.session.settings.has_spare_cores,
        max_fields=service.max_fields,
    ):
        report.start(service.metrics, placement.name, placement.version)
    if worker.runs_here():
        service.metrics.share_if_told(placement.name, placement.version)
        service.start()
        batch = int(properties.get("batch_size") or 1)
        _serve_directly(service, placement, batch, sampler)


def _serve_directly(
    service: Service, placement: Placement, batch: int, sampler: SampleWriter | None
) -> None:
    """Answer over HTTP, too, where `marship serve` has started an acceptor."""
    acceptor = os.environ.get("MARSHIP_DIRECT_WORKERS")
    if acceptor is None:
        return
    try:
        from marship.serving.hosts.direct import worker as direct
    except ImportError as error:  # an archive that is served by an older installation
        logger.warning("the direct address is not available for this worker: %s", error)
        return
    key_file = os.environ.get("MARSHIP_DIRECT_KEY_FILE")
    settings = direct.WorkerSettings(
        acceptor=Path(acceptor),
        model=placement.name,
        version=placement.version,
        batch=batch,
        queue=int(os.environ.get("MARSHIP_DIRECT_QUEUE", "1000")),
        key_file=Path(key_file) if key_file else None,
        headers=json.loads(os.environ.get("MARSHIP_DIRECT_HEADERS", "{}")),
        sampler=sampler,
    )
    atexit.register(direct.start(service, settings).leave)


def answer(service: Service, requests: Sequence[Request], send: Send) -> bytes:
    """The message with a batch's responses; those that can be sent early are sent before."""
    began_s = time.perf_counter()
    codes: list[str] = []
    try:
        return _message(service, requests, send, codes)
    finally:  # how long they waited before, the frontend counts
        came_s = [began_s] * len(requests)
        service.metrics.add_times(came_s, began_s, codes, knows_queue=False)


def _message(service: Service, requests: Sequence[Request], send: Send, codes: list[str]) -> bytes:
    """The last message; `codes` gets the outcome of each request, if not all are well."""
    if not service.streams:
        replies, timing = service.reply(requests)
        codes += outcomes(replies)
        return wire.encode(requests, replies, timing)
    outbox, timing = Outbox(len(requests)), ""
    codes += [OK] * len(requests)
    for ready, timing in service.replies(requests):
        for index, reply in ready.items():
            codes[index] = reply.outcome
        if now := outbox.take(ready):
            send(wire.encode([requests[index] for index in now], list(now.values()), timing))
    rest = outbox.rest()
    return wire.encode([requests[index] for index in rest], list(rest.values()), timing)


def handle(service: Service, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
    """The response bodies for a batch parsed by TorchServe's own reader.

    Its writer takes whole responses at the end alone, so nothing but parts goes out early.
    """
    requests = [
        to_request(row, context.get_all_request_header(index)) for index, row in enumerate(data)
    ]
    outbox, whole, timing = Outbox(len(requests)), dict[int, Reply](), ""
    for ready, timing in service.replies(requests):
        now = outbox.take(ready)
        if parts := {index: reply for index, reply in now.items() if reply.more}:
            _describe(parts, timing, context)
            wire.send_parts(parts, context)
        whole |= {index: reply for index, reply in now.items() if not reply.more}
    whole |= outbox.rest()
    _describe(whole, timing, context)
    return [whole[index].body for index in range(len(requests))]


def _describe(replies: Mapping[int, Reply], timing: str, context: Context) -> None:
    """Set the status and headers of responses for TorchServe's own writer, by index."""
    for index, reply in replies.items():
        for name, value in reply.all_headers(timing).items():
            context.set_response_header(index, name, value)
        if reply.status != HTTPStatus.OK:
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)


def to_request(row: Mapping[str, object], headers: Mapping[str, Any]) -> Request:
    """A request from TorchServe's own reader; `wire` selects the body in the same way."""
    names = list(row)
    name = next((n for n in ("body", "data") if n in row), names[0] if names else "")
    part = headers.get(name)
    content_type = part.get("content-type") if isinstance(part, dict) else None
    return Request(
        body=row.get(name, b""),
        name=name,
        content_type=content_type or "",
        fields={key: value for key, value in row.items() if key != name},
        field_count=len(row),
        headers={key.lower(): value for key, value in headers.items() if isinstance(value, str)},
        explains=headers.get("explain") == "True",  # TorchServe's own, see `wire`
    )
