"""A model behind requests, whichever host it runs in: loaded, batched, encoded and counted.

A host (`hosts`) loads it once in a worker and hands it each batch of requests. A handler of one's
own overrides `prepare`, `decode`, `encode` and `advice`, each for a single request.
"""

import inspect
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import orjson

from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Arrays, Contract
from marship.errors import LoadError, MarshipError, ModelError, RequestError, TooLargeError, bare
from marship.serving.formats import codec, extent, forms, kserve, rows
from marship.serving.message import (
    JSON_TYPE,
    MAX_FORM_FIELDS,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    Reply,
    Request,
    hidden,
)
from marship.serving.metrics import Metrics
from marship.serving.model import sealed, watch
from marship.serving.model.batch import Batcher, Parts
from marship.serving.model.session import Session, SessionSettings
from marship.serving.model.share import Share
from marship.serving.model.siblings import Siblings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a host runs a model, and within which limits.

    Attributes:
        folder: The extracted archive.
        name: The model's name, for responses and the log.
        version: Likewise.
        config: The parsed model-config.yaml.
        device_id: The accelerator to run on; None is the CPU.
        workers: How many workers share the machine's cores, at most.
        siblings: Those workers, counted; None where their number does not change.
        timeout_s: The host ends a worker whose batch takes longer; None where it does not.
        max_request_bytes: The largest request that the host takes; a compressed one without its
            compression.
        max_response_bytes: The largest response that the host sends.
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


class Service:
    """Serves an ONNX model: tensors in, tensors out.

    Attributes:
        folder: The extracted archive.
        contract: What the model takes and gives.
        config: The parsed model-config.yaml.
        session: The loaded model.
        timeout_s: How long a batch may take; None where the host sets no limit.
        max_fields: The most fields of a form.
        metrics: Counts requests, errors and time.
        streams: Whether responses may be ready one after the other, or in parts.
        golden_s: How long a warm call took, for each golden case.
    """

    folder: Path
    contract: Contract
    config: Mapping[str, Any]
    session: Session
    timeout_s: float | None
    max_fields: int
    metrics: Metrics
    streams: ClassVar[bool] = False
    golden_s: list[float]

    def load(self, placement: Placement) -> None:
        """Load the model, warm it up and prove it on the golden cases.

        Raises:
            LoadError: The worker must not serve this model; the message says why.
            SealError: The model is sealed and cannot be opened.
        """
        _check_methods(type(self))
        name, folder, siblings = placement.name, placement.folder, placement.siblings
        self.folder, self.config, self.timeout_s = folder, placement.config, placement.timeout_s
        self._name, self._version = name, placement.version
        self._max_request_bytes = placement.max_request_bytes
        self._max_response_bytes = placement.max_response_bytes
        section = self.config.get("marship") or {}
        self.max_fields = _max_form_fields(section)
        self.contract = _contract(folder)
        workers = max(placement.workers, siblings.count() if siblings else 1)
        settings = SessionSettings.from_config(section, workers, placement.device_id)
        self.session = self._open(settings)
        allow = bool(section.get("allow_non_finite", False))
        self._batcher = Batcher(self.contract, self.session.run, allow, self.joins())
        most_rows = extent.most_rows(self.contract.outputs, self._max_response_bytes)
        self._reads_rows = self._is_plain() and rows.fits(self.contract) and most_rows is not None
        self._most_rows = (most_rows or 0) if self.contract.batch_axis else 0
        self.metrics = Metrics()
        self.prepare()
        share = watch.share_of(section) if self.rechecks() else 0.0
        self._watch = watch.Watch(name, folder, self._batcher, self.metrics, share)
        follows = siblings is not None and settings.providers == ("cpu",)
        self._share = Share(self.session, siblings) if siblings and follows else None
        warm_ms = 1e3 * max(self.golden_s, default=0.0)
        logger.info("%s ready, %d threads, %.2f ms", name, settings.threads, warm_ms)

    def _open(self, settings: SessionSettings) -> Session:
        """The session, warm and proven on the golden cases."""
        opener = sealed.opener(self.folder)
        session = Session(self.folder, self.contract, settings, opener)
        self.golden_s = session.replay_golden(
            opener.stream(GOLDEN_FILE) if opener else self.folder / GOLDEN_FILE
        )
        if opener is not None:
            opener.forget_key()
        return session

    def _is_plain(self) -> bool:
        """Whether requests and responses are tensors alone."""
        own, base = type(self), Service
        return (own.decode, own.encode) == (base.decode, base.encode)

    def start(self) -> None:
        """Start what goes on beside requests until the worker ends.

        Rows of joined calls are repeated alone, and threads follow the number of workers.
        """
        self._watch.start()
        if self._share is not None:
            self._share.follow()

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

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[dict[int, Reply], str]]:
        """What is ready after each turn, by the requests' places, and the Server-Timing so far.

        Nothing is raised. A request has any number of parts that others follow, and one last.
        """
        replies, timing = self.reply(requests)
        yield dict(enumerate(replies)), timing

    def reply(self, requests: Sequence[Request]) -> tuple[list[Reply], str]:
        """Each request's answer, and the batch's Server-Timing; nothing is raised."""
        clock = Clock()
        try:
            replies = self._read_together(requests, clock) or self._reply_each(requests, clock)
        except Exception:  # a fault here must not end the worker
            replies = [self._error(hidden("answer"))] * len(requests)
        replies = [self._fitted(reply) for reply in replies]
        self.metrics.add_batch(len(replies), clock.seconds)
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
        """Make a request fit to be decoded: its fields are counted, its content encoding undone.

        Raises:
            TooLargeError: A form has more fields than `max_fields`, and the host kept none; or
                the body is too large without its encoding.
            RequestError: The encoding is not known, or the body is not encoded so.
        """
        if request.field_count > self.max_fields:
            raise TooLargeError(
                f"a form must have at most {self.max_fields} fields, got {request.field_count}. "
                "Send several requests, or raise max_form_fields under marship: in "
                "model-config.yaml."
            )
        encodings = request.header("content-encoding")
        if encodings:
            request.body = forms.undo_encodings(request.body, encodings, self._max_request_bytes)

    def refusal(self, error: MarshipError) -> Reply:
        """The response to a request that the host itself could not read."""
        return self._failed(error)

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
        self.metrics.add_error(error.code)
        body = {"code": error.code, "message": str(error), **(more or {})}
        return Reply(orjson.dumps(body), JSON_TYPE, error.status)

    def _expects(self) -> dict[str, object]:
        return {"expects": self.advice()}

    def _fitted(self, reply: Reply) -> Reply:
        """The answer, or an error where it is over the server's limit."""
        try:
            extent.check(len(reply.body), self._max_response_bytes)
        except TooLargeError as error:
            return self._error(error, self._expects())
        return reply


def _check_methods(kind: type[Service]) -> None:
    """Refuse a handler whose own way to send responses would never be called."""
    answer = getattr(kind, "answer", None)
    if callable(answer) and "send" in inspect.signature(answer).parameters:
        raise LoadError(
            f"{kind.__name__} must override decode and encode, or answers of StreamHandler, got "
            "answer(requests, send) of an earlier version, which nothing calls any more. Yield "
            "from answers what it sent."
        )


def _contract(folder: Path) -> Contract:
    try:
        return Contract.from_json((folder / CONTRACT_FILE).read_bytes())
    except (OSError, ModelError) as error:
        raise LoadError(f"{CONTRACT_FILE} must be in the archive, got: {error}") from error


def _max_form_fields(section: Mapping[str, Any]) -> int:
    """The most fields of a form, as `marship:` in model-config.yaml says.

    Raises:
        LoadError: The value is no whole number from 1.
    """
    most = section.get("max_form_fields", MAX_FORM_FIELDS)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise LoadError(
            "marship.max_form_fields in model-config.yaml must be a whole number from 1, "
            f"got {most!r}. Leave it out for {MAX_FORM_FIELDS}."
        )
    return most
