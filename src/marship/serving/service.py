"""Serves a model, independently of the host: loading, batching, encoding, errors, metrics.

A host (`hosts`) loads it once in a worker and passes it each batch of requests. A custom handler
overrides `prepare`, `decode`, `encode` and `advice`, each for a single request.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import orjson

from marship.contract import GOLDEN_REQUESTS_FILE, Arrays, Contract
from marship.errors import MarshipError, ModelError, RequestError, TooLargeError, bare
from marship.serving import earlier
from marship.serving.formats import codec, extent, forms, golden, kserve, rows
from marship.serving.message import (
    JSON_TYPE,
    Reply,
    Request,
    checked,
    failures,
    hidden,
    no_explanation,
)
from marship.serving.metrics import Clock, Metrics
from marship.serving.model import custom_ops, pace, sealed, watch
from marship.serving.model.batch import Batcher, Parts
from marship.serving.model.fair import FairLock
from marship.serving.model.graphs import Graphs, contract_in
from marship.serving.model.session import Session, SessionSettings
from marship.serving.model.share import Share
from marship.serving.openapi import description, tensors
from marship.serving.openapi.interface import Interface, opaque
from marship.serving.placement import Placement

logger = logging.getLogger(__name__)


class Service:
    """Serves an ONNX model: tensors in, tensors out.

    Attributes:
        folder: The extracted archive.
        contract: The model's contract.
        config: The parsed model-config.yaml.
        session: The loaded model.
        timeout_s: The host's timeout of a batch; None without one.
        max_fields: Maximum number of form fields.
        metrics: Counts requests, errors and time.
        streams: Whether responses may be sent one by one, or in parts.
        waits_for_others: Whether a call waits for other processes.
        is_private: Whether clients encrypt their requests.
        graphs: The archive's further graphs, by name.
        golden_s: Seconds of a warm call for each golden case, of all graphs.
        golden_requests: The number of golden requests that were replayed.
        max_request_bytes: The largest body, without its content encoding.
    """

    folder: Path
    contract: Contract
    config: Mapping[str, Any]
    session: Session
    graphs: Graphs
    timeout_s: float | None
    max_fields: int
    metrics: Metrics
    streams: ClassVar[bool] = False
    waits_for_others: ClassVar[bool] = False
    is_private: ClassVar[bool] = False
    _pace: pace.Pace | None = None
    golden_s: list[float]
    golden_requests: int
    max_request_bytes: int

    def load(self, placement: Placement) -> None:
        """Load the model, warm it up, and replay the golden cases and requests.

        Raises:
            LoadError: The model cannot be served; the message says why.
            SealError: The model is sealed and cannot be decrypted.
        """
        earlier.check_methods(type(self))
        name, folder, siblings = placement.name, placement.folder, placement.siblings
        self.folder, self.config, self.timeout_s = folder, placement.config, placement.timeout_s
        self._name, self._version = name, placement.version
        self.max_request_bytes = placement.max_request_bytes
        self._max_response_bytes = placement.max_response_bytes
        section = self.config.get("marship") or {}
        self.max_fields = forms.most_fields(section)
        self.contract = contract_in(folder)
        self._labels = {spec.name: spec.labels for spec in self.contract.outputs if spec.labels}
        workers = max(placement.workers, siblings.count() if siblings else 1)
        settings = replace(
            SessionSettings.from_config(section, workers, placement.device_id),
            libraries=custom_ops.verified(folder, self.contract.libraries),
        )
        self.session = self._open(settings)
        allow = bool(section.get("allow_non_finite", False))
        self._takes_nan = allow or any(spec.takes_missing for spec in self.contract.inputs)
        # only where a client sends the tensors themselves are refused ones its fault
        sample = self.session.sample if self._is_plain() and not self.streams else {}
        self._batcher = Batcher(self.contract, self.session.run, allow, self.joins(), sample)
        most_rows = extent.most_rows(self.contract.outputs, self._max_response_bytes)
        self._reads_rows = self._is_plain() and rows.fits(self.contract) and most_rows is not None
        self._most_rows = (most_rows or 0) if self.contract.batch_axis else 0
        self.metrics = Metrics()
        self.metrics.set_golden_drift(max(s.drift for s in (self.session, *self.graphs.values())))
        self.prepare()
        share = watch.share_of(section) if self.rechecks() else 0.0
        self._watch = watch.Watch(name, folder, self._batcher, self.metrics, share)
        follows = siblings is not None and settings.providers == ("cpu",)
        others = self.graphs.values()
        self._share = Share(self.session, siblings, others) if siblings and follows else None
        self.golden_requests = golden.replay(self._golden_requests, self.respond, self.contract)
        self.metrics.forget()  # they are nobody's requests
        warm_ms = 1e3 * max(self.golden_s, default=0.0)
        logger.info("%s ready, %d threads, %.2f ms", name, settings.threads, warm_ms)

    def _open(self, settings: SessionSettings) -> Session:
        """The session, warmed up and checked with the golden cases, and those of `graphs`."""
        opener = sealed.opener(self.folder)
        session = Session(self.folder, self.contract, settings, opener)
        self.graphs = Graphs.opened(self.folder, settings, opener)
        self.golden_s = session.replay_golden(session.golden_source())
        self.golden_s += self.graphs.replay_golden()
        self._golden_requests = self._read_requests(opener)
        if opener is not None:
            opener.forget_key()
        return session

    def _read_requests(self, opener: sealed.Opener | None) -> list[golden.GoldenRequest]:
        path = self.folder / f"{GOLDEN_REQUESTS_FILE}{sealed.SUFFIX if opener else ''}"
        if not path.is_file():
            return []
        return golden.read(
            opener.open(GOLDEN_REQUESTS_FILE).tobytes() if opener else path.read_bytes()
        )

    def _is_plain(self) -> bool:
        """Whether requests and responses are plain tensors."""
        own, base = type(self), Service
        return (own.decode, own.encode) == (base.decode, base.encode)

    def start(self) -> None:
        """Start background threads, which run until the worker exits.

        They recheck rows of batches, and adapt threads to the number of workers.
        """
        self._watch.start()
        if self._share is not None:
            self._share.follow()

    def prepare(self) -> None:
        """Load what a custom handler needs besides the model; its files are in `folder`."""

    def joins(self) -> bool:
        """Whether requests are batched; where that gains nothing it only costs memory."""
        return True

    def rechecks(self) -> bool:
        """Whether rows of batches are rechecked alone: see `watch`."""
        return True

    def decode(self, request: Request) -> tuple[Arrays | Parts, Any]:
        """Turn a request into input tensors and whatever `encode` needs to know about it.

        A request with several parts, possibly of different sizes, is a list: each part is run
        separately, and `encode` gets a list of outputs and errors.

        Raises:
            RequestError: The client gets its message and status.
        """
        length = request.header(kserve.LENGTH_HEADER)
        message = codec.decode(
            request.body,
            request.content_type,
            self.contract,
            length,
            allow_non_finite=self._takes_nan,
        )
        first = next(iter(message.inputs.values()), None)  # a model may have no inputs
        if first is None or not first.ndim or len(first) > self._most_rows:
            stated = extent.stated(self.contract, message.inputs)
            codec.check_size(message, stated, self._max_response_bytes)
        return message.inputs, message

    def encode(self, outputs: Any, state: Any) -> Reply:  # noqa: ANN401  of decode's choice
        """Encode one request's outputs as its response; `state` is from `decode`.

        Raises:
            RequestError: The client gets its message and status.
        """
        return codec.encode(
            outputs, state, self._name, self._version, self._max_response_bytes, self._labels
        )

    def advice(self) -> object:
        """What a request should look like; a JSON value that is part of every 4xx response."""
        return [str(spec) for spec in self.contract.inputs]

    def own_advice(self) -> object:
        """`advice` of a handler whose requests are none of tensors; None without its own."""
        return None if type(self).advice is Service.advice else self.advice()

    def interface(self) -> Interface:
        """What requests and responses look like; a handler with its own `decode` declares them."""
        if not self._is_plain():
            return opaque(self.own_advice())
        return tensors.interface(self.contract, self.session.sample, self.session.run)

    def description(self) -> bytes:
        """What a server's OpenAPI document says of the model, as JSON; never raises."""
        return description.encoded(self, self._golden_requests, self._max_response_bytes)

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[dict[int, Reply], str]]:
        """Yield replies as they are ready, by request index, with the Server-Timing so far.

        Never raises. A request has any number of parts with `more`, and one last part.
        """
        replies, timing = self.reply(requests)
        yield dict(enumerate(replies)), timing

    def respond(self, body: bytes, content_type: str) -> Reply:
        """The whole response to one request, as one part; never raises."""
        try:
            request = forms.request_of(
                body,
                {"content-type": content_type, "content-length": str(len(body))},
                most_fields=self.max_fields,
                most_bytes=self.max_request_bytes,
            )
        except RequestError as error:
            return self.refusal(error)
        parts = [reply for ready, _ in self.replies([request]) for reply in ready.values()]
        return replace(parts[0], body=b"".join(part.body for part in parts), more=False)

    @cached_property
    def _calls(self) -> FairLock:
        return FairLock()

    def reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        """The reply to each request, and the batch's Server-Timing; never raises.

        Several hosts may call at the same time: one call is made after the other.
        """
        with self._calls:
            return self._reply(requests)

    def measure_pace(self) -> None:
        """Time calls of the model, for a host that decides by it how to batch."""
        if self.session.sample:
            self._pace = pace.measure(self.session.run, self.contract, self.session.sample)

    @property
    def joining_pays(self) -> bool:
        """Whether requests in one call take less time each; on a CPU, large networks do not."""
        return self._batcher.joins and (self._pace is None or self._pace.joining_pays)

    def call_s(self, rows: int) -> float:
        """About how long a call with so many rows takes; infinite where it was not measured."""
        if self._pace is None or not self._is_plain():
            return math.inf
        return self._pace.joined_s * rows if self.joining_pays else self._pace.alone_s

    def _reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        clock = Clock()
        try:
            replies = self._read_together(requests, clock) or self._reply_each(requests, clock)
        except Exception:  # an error here must not crash the worker
            replies = [self._error(hidden("answer"))] * len(requests)
        replies = [self._fitted(reply) for reply in replies]
        self.metrics.add_batch(len(replies), clock.seconds, failures(replies))
        self._watch.pass_on()
        return replies, clock.server_timing()

    def _read_together(self, requests: Sequence[Request], clock: Clock) -> list[Reply] | None:
        try:
            return self._reply_rows(requests, clock)
        except Exception:  # the failing request is found one by one
            logger.exception("requests failed to run together")
            return None

    def _reply_rows(self, requests: Sequence[Request], clock: Clock) -> list[Reply] | None:
        """All replies by the fast path, if all requests are plain rows."""
        if not (self._reads_rows and self._batcher.joins):
            return None
        gathered = rows.gather(requests, self.contract)
        clock.lap("decode")
        if gathered is None or sum(gathered.counts) > self._most_rows:
            return None  # too large ones are rejected one by one
        try:
            outputs = self.session.run(gathered.arrays)
        except ModelError:
            return None  # the failing request is found one by one
        if self._batcher.has_mixed(outputs, gathered.sizes):
            return None  # each alone, from now on
        if len(requests) > 1 and (on_joined := self._batcher.on_joined):
            on_joined(gathered.arrays, outputs)
        clock.lap("infer")
        replies = rows.scatter(outputs, gathered, self._labels)
        clock.lap("encode")
        return replies

    def _reply_each(self, requests: Sequence[Request], clock: Clock) -> list[Reply]:
        states: list[Any] = [None] * len(requests)
        decoded = [self._decode(request, states, i) for i, request in enumerate(requests)]
        clock.lap("decode")
        results = self._batcher.run_parts(decoded)
        clock.lap("infer")
        replies = [
            self._encode(result, state) for result, state in zip(results, states, strict=True)
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
        except Exception:  # an error in decoding one request must not affect others
            return hidden("decode")
        return inputs

    def check_fields(self, request: Request) -> None:
        """Check a request's number of fields, and decode its content encoding.

        Raises:
            TooLargeError: A form has more fields than `max_fields`, or the decoded body is too
                large.
            RequestError: The encoding is unknown, or the body is not encoded so; or it came as a
                form and is none.
            UnsupportedError: An explanation is wanted.
        """
        if request.explains:
            raise no_explanation()
        if request.field_count > self.max_fields:
            raise TooLargeError(
                f"a form must have at most {self.max_fields} fields, got {request.field_count}. "
                "Send several requests, or raise max_form_fields under marship: in "
                "model-config.yaml."
            )
        forms.check_form(request)
        if not request.content_type and forms.is_fields(request):
            request.content_type = forms.FIELDS_TYPE  # so that a refusal names the header
        encodings = request.header("content-encoding")
        if encodings:
            request.body = forms.undo_encodings(request.body, encodings, self.max_request_bytes)

    def refusal(self, error: MarshipError) -> Reply:
        """The response to a request that the host could not parse."""
        return self._failed(error)

    def _encode(self, result: Arrays | Parts | MarshipError, state: Any) -> Reply:  # noqa: ANN401
        if isinstance(result, MarshipError):
            return self._failed(result)
        try:
            return checked(self.encode(result, state))
        except MarshipError as error:
            return self._failed(error)
        except Exception:  # an error in encoding one response must not affect others
            return self._error(hidden("encode"))

    def _failed(self, error: MarshipError) -> Reply:
        if isinstance(error, RequestError):
            return self._error(error, self._expects())
        return self._error(hidden("run", error) if isinstance(error, ModelError) else error)

    def _error(self, error: MarshipError, more: Mapping[str, object] | None = None) -> Reply:
        bare(error)  # an error that was raised again is referenced by its own traceback
        self.metrics.add_error(error.code)
        body = {"code": error.code, "message": str(error), **(more or {})}
        return Reply(orjson.dumps(body), JSON_TYPE, error.status, code=error.code)

    def _expects(self) -> dict[str, object]:
        return {"expects": self.advice()}

    def _fitted(self, reply: Reply) -> Reply:
        """The reply, or an error if it exceeds the server's limit."""
        try:
            extent.check(len(reply.body), self._max_response_bytes)
        except TooLargeError as error:
            return self._error(error, self._expects())
        return reply
