"""OnnxHandler: the base of everything in handlers/.

TorchServe calls `initialize` once in a worker and `handle` with each batch of requests. A
handler of one's own overrides `prepare`, `decode`, `encode` and `advice`, each for a single
request; batching, errors, headers and timings stay here.
"""

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import orjson

from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Arrays, Contract
from marship.errors import LoadError, MarshipError, ModelError, RequestError, TooLargeError, bare
from marship.serving.formats import codec, extent, kserve, rows
from marship.serving.hosts.torchserve import wire as transport
from marship.serving.hosts.torchserve import worker
from marship.serving.hosts.torchserve.wire import Reply, Request, Send
from marship.serving.metrics import Metrics
from marship.serving.model import sealed, siblings, watch
from marship.serving.model.batch import Batcher, Parts
from marship.serving.model.session import Session, SessionSettings
from marship.serving.model.share import Share

logger = logging.getLogger(__name__)

MAX_RESPONSE_ENV = "MARSHIP_MAX_RESPONSE_SIZE"
MAX_RESPONSE_BYTES = 6_553_500
"""TorchServe's default for max_response_size; a larger answer would cut the worker off."""


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
        """Set one answer's HTTP status."""

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set one answer's header."""


class Clock:
    """What a batch spent its time on."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "infer": 0.0, "encode": 0.0}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """The time since the last lap was spent on this step."""
        now = time.perf_counter()
        self.seconds[step] += now - self._last
        self._last = now

    def server_timing(self) -> str:
        """The Server-Timing header (W3C); durations are of the whole batch, in milliseconds."""
        return ", ".join(f"{step};dur={s * 1e3:.3f}" for step, s in self.seconds.items())


class OnnxHandler:
    """Serves an ONNX model: tensors in, tensors out.

    Attributes:
        folder: The extracted archive.
        contract: What the model takes and gives.
        config: The parsed model-config.yaml.
        session: The loaded model.
    """

    folder: Path
    contract: Contract
    config: dict[str, Any]
    session: Session

    def initialize(self, context: Context) -> None:
        """Load the model, warm it up and prove it on the golden cases.

        Raises:
            LoadError: The worker must not serve this model; the message says why.
            SealError: The model is sealed and cannot be opened.
        """
        properties = context.system_properties
        self.folder = Path(properties["model_dir"])
        self.config = context.model_yaml_config or {}
        self._name = context.model_name
        manifest = context.manifest or {}
        self._version = str(manifest.get("model", {}).get("modelVersion", ""))
        self._max_response_bytes = int(os.environ.get(MAX_RESPONSE_ENV, MAX_RESPONSE_BYTES))
        self._max_fields = worker.max_form_fields(self.config)
        try:
            self.contract = Contract.from_json((self.folder / CONTRACT_FILE).read_bytes())
        except (OSError, ModelError) as error:
            raise LoadError(f"{CONTRACT_FILE} must be in the archive, got: {error}") from error
        settings = SessionSettings.from_config(self.config, properties.get("gpu_id"))
        crew = siblings.joined(self.folder) if worker.runs_here() else None
        if crew is not None:
            settings = replace(settings, workers=max(settings.workers, crew.count()))
        opener = sealed.opener(self.folder)
        self.session = Session(self.folder, self.contract, settings, opener)
        golden = opener.stream(GOLDEN_FILE) if opener else self.folder / GOLDEN_FILE
        warm_s = self.session.replay_golden(golden)
        if opener is not None:
            opener.forget_key()
        allow = bool((self.config.get("marship") or {}).get("allow_non_finite", False))
        self._batcher = Batcher(self.contract, self.session.run, allow, self.joins())
        is_plain = (type(self).decode, type(self).encode) == (
            OnnxHandler.decode,
            OnnxHandler.encode,
        )
        most_rows = extent.most_rows(self.contract.outputs, self._max_response_bytes)
        self._reads_rows = is_plain and rows.fits(self.contract) and most_rows is not None
        self._most_rows = (most_rows or 0) if self.contract.batch_axis else 0
        self._metrics = Metrics(self._name, self._version)
        self.prepare()
        share = watch.share_of(self.config) if self.rechecks() else 0.0
        self._watch = watch.Watch(self._name, self.folder, self._batcher, self._metrics, share)
        self._is_alone = properties.get("batch_size") == 1  # each request a batch
        self._settle(settings)
        if worker.install(self.answer, spins=lambda: self._spins, max_fields=self._max_fields):
            self._metrics.start()
            self._watch.start()
        logger.info("%s ready, %d threads, %.2f ms", self._name, settings.threads, warm_s * 1e3)

        if crew is not None and settings.providers == ("cpu",):
            Share(self.session, crew, self._settle).follow()

    def _settle(self, settings: SessionSettings) -> None:
        """Take note of the number of workers."""
        self._spins = self._is_alone and settings.has_spare_cores

    def prepare(self) -> None:
        """Load what a handler of one's own needs besides the model; files lie in `folder`."""

    def joins(self) -> bool:
        """Whether requests share a call of the model; where that gains nothing, it costs memory."""
        return True

    def rechecks(self) -> bool:
        """Whether rows of joined calls are repeated alone now and then: see `watch`."""
        return True

    def decode(self, request: Request) -> tuple[Arrays | Parts, Any]:
        """Turn a request into input tensors and whatever `encode` needs to know about it.

        A request that asks several things, of different sizes perhaps, is a list: each part is
        answered by itself, and `encode` gets a list of outputs and errors.

        Raises:
            RequestError: The client gets its message and status.
        """
        length = request.header(kserve.LENGTH_HEADER)
        message = codec.decode(request.body, request.content_type, self.contract, length)
        first = message.inputs[self.contract.inputs[0].name]
        if not first.ndim or len(first) > self._most_rows:
            stated = extent.stated(self.contract, message.inputs)
            codec.check_size(message, stated, self._max_response_bytes)
        return message.inputs, message

    def encode(self, outputs: Any, state: Any) -> Reply:  # noqa: ANN401  of decode's choice
        """Turn one request's output tensors into its answer; `state` is from `decode`.

        Raises:
            RequestError: The client gets its message and status.
        """
        return codec.encode(outputs, state, self._name, self._version, self._max_response_bytes)

    def advice(self) -> object:
        """What a request should look like; a JSON value that goes into every 4xx answer."""
        return [str(spec) for spec in self.contract.inputs]

    def handle(self, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
        """Answer a batch that TorchServe's own reader has read.

        Args:
            data: One mapping for each request: `body`, or form fields by name.
            context: TorchServe's; takes each answer's status and headers.
        """
        requests = [
            to_request(row, context.get_all_request_header(index)) for index, row in enumerate(data)
        ]
        replies, timing = self.reply(requests)
        describe(dict(enumerate(replies)), timing, context)
        return [reply.body for reply in replies]

    def answer(self, requests: Sequence[Request], send: Send) -> bytes:  # noqa: ARG002  for streams
        """Answer a batch that came through the buffer, as one message."""
        replies, timing = self.reply(requests)
        return transport.encode(requests, replies, timing)

    def reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        """Each request's answer, and the batch's Server-Timing; nothing is raised."""
        clock = Clock()
        try:
            replies = self._read_together(requests, clock) or self._reply_each(requests, clock)
        except Exception:  # a fault here must not end the worker
            replies = [self._error(hidden("answer"))] * len(requests)
        replies = [self._fitted(reply) for reply in replies]
        self._metrics.add_batch(len(replies), clock.seconds)
        self._watch.pass_on()
        return replies, clock.server_timing()

    def _read_together(self, requests: Sequence[Request], clock: Clock) -> list[Reply] | None:
        try:
            return self._reply_rows(requests, clock)
        except Exception:  # whose fault it is, shows one by one
            logger.exception("requests failed to be answered together")
            return None

    def _reply_rows(self, requests: Sequence[Request], clock: Clock) -> list[Reply] | None:
        """All answers at once, where all requests are plain rows and the model takes them."""
        if not (self._reads_rows and self._batcher.joins):
            return None
        gathered = rows.gather(requests, self.contract)
        clock.lap("decode")
        if gathered is None or len(gathered.array) > self._most_rows:
            return None  # what is too large is refused one by one
        try:
            outputs = self.session.run({self.contract.inputs[0].name: gathered.array})
        except ModelError:
            return None  # one by one, the culprit is found
        if self._batcher.has_mixed(outputs, gathered.sizes):
            return None  # each alone, from now on
        if len(requests) > 1 and (on_joined := self._batcher.on_joined):
            on_joined({self.contract.inputs[0].name: gathered.array}, outputs)
        clock.lap("infer")
        replies = rows.scatter(outputs, gathered)
        clock.lap("encode")
        return replies

    def _reply_each(self, requests: Sequence[Request], clock: Clock) -> list[Reply]:
        states: list[Any] = [None] * len(requests)
        decoded = [self._decode(request, states, i) for i, request in enumerate(requests)]
        clock.lap("decode")
        answers = self._batcher.answer(decoded)
        clock.lap("infer")
        replies = [
            self._encode(answer, state) for answer, state in zip(answers, states, strict=True)
        ]
        clock.lap("encode")
        return replies

    def _decode(
        self, request: Request, states: list[Any], index: int
    ) -> Arrays | Parts | MarshipError:
        try:
            self.check_fields(request)
            inputs, states[index] = self.decode(request)
        except RequestError as error:
            return bare(error)
        except MarshipError as error:
            return error
        except Exception:  # a fault in one request's decoding must not reach its neighbours
            return hidden("decode")
        return inputs

    def check_fields(self, request: Request) -> None:
        """Refuse a form with too many fields, of which the transport kept none.

        Raises:
            TooLargeError: It has more than `max_form_fields`.
        """
        if request.field_count > self._max_fields:
            raise TooLargeError(
                f"a form must have at most {self._max_fields} fields, got {request.field_count}. "
                "Send several requests, or raise max_form_fields under marship: in "
                "model-config.yaml."
            )

    def _encode(self, answer: Arrays | Parts | MarshipError, state: Any) -> Reply:  # noqa: ANN401
        if isinstance(answer, MarshipError):
            return self._failed(answer)
        try:
            return self.encode(answer, state)
        except MarshipError as error:
            return self._failed(error)
        except Exception:  # a fault in one answer's encoding must not reach its neighbours
            return self._error(hidden("encode"))

    def _failed(self, error: MarshipError) -> Reply:
        if isinstance(error, RequestError):
            return self._error(error, self._expects())
        return self._error(hidden("run", error) if isinstance(error, ModelError) else error)

    def _error(self, error: MarshipError, more: Mapping[str, object] | None = None) -> Reply:
        bare(error)  # an error that was raised again is held by one of its own calls
        self._metrics.add_error(error.code)
        body = {"code": error.code, "message": str(error), **(more or {})}
        return Reply(orjson.dumps(body), codec.JSON_TYPE, error.status)

    def _expects(self) -> dict[str, object]:
        return {"expects": self.advice()}

    def _fitted(self, reply: Reply) -> Reply:
        """The answer, or an error where it is over the server's limit."""
        try:
            extent.check(len(reply.body), self._max_response_bytes)
        except TooLargeError as error:
            return self._error(error, self._expects())
        return reply


def describe(replies: Mapping[int, Reply], timing: str, context: Context) -> None:
    """Tell TorchServe's own writer the status and headers of answers, by their place."""
    for index, reply in replies.items():
        for name, value in reply.all_headers(timing).items():
            context.set_response_header(index, name, value)
        if reply.status != HTTPStatus.OK:
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)


def to_request(row: Mapping[str, object], headers: Mapping[str, Any]) -> Request:
    """A request as TorchServe's own reader gives it; `transport` chooses the body alike."""
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
        raw_headers={k: v for k, v in headers.items() if isinstance(v, str)},
    )


def hidden(step: str, error: MarshipError | None = None) -> MarshipError:
    """Log the error, or the exception being handled; the client gets a reference to it alone."""
    reference = uuid.uuid4().hex[:12]
    logger.error("request failed to %s, reference %s", step, reference, exc_info=error or True)
    return MarshipError(
        f"the server must {step} every valid request, and failed. "
        f"Its log has the reason under reference {reference}."
    )
