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
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import orjson

from marship.contract import CONTRACT_FILE, GOLDEN_FILE, Arrays, Contract
from marship.errors import LoadError, MarshipError, ModelError, RequestError, TooLargeError
from marship.serving import codec
from marship.serving.batch import Batcher
from marship.serving.session import Session, SessionSettings

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

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set one answer's Content-Type."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it came in.

    Attributes:
        body: The bytes; TorchServe may have parsed JSON already.
        content_type: Of the body; empty where none was sent.
        fields: Query parameters and further multipart fields, by name.
    """

    body: object
    content_type: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Reply:
    """One answer; an error is one too."""

    body: bytes
    content_type: str = codec.JSON_TYPE
    status: int = 200


@dataclass(slots=True)
class _Job:
    """One request of a batch with what has become of it."""

    request: Request
    state: Any = None
    decode_s: float = 0.0
    reply: Reply | None = None


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
        """
        properties = context.system_properties
        self.folder = Path(properties["model_dir"])
        self.config = context.model_yaml_config or {}
        self._name = context.model_name
        manifest = context.manifest or {}
        self._version = str(manifest.get("model", {}).get("modelVersion", ""))
        self._max_response_bytes = int(os.environ.get(MAX_RESPONSE_ENV, MAX_RESPONSE_BYTES))
        try:
            self.contract = Contract.from_json((self.folder / CONTRACT_FILE).read_bytes())
        except (OSError, ModelError) as error:
            raise LoadError(f"{CONTRACT_FILE} must be in the archive, got: {error}") from error
        settings = SessionSettings.from_config(self.config, properties.get("gpu_id"))
        self.session = Session(self.folder, self.contract, settings)
        warm_s = self.session.replay_golden(self.folder / GOLDEN_FILE)
        allow = bool((self.config.get("marship") or {}).get("allow_non_finite", False))
        self._batcher = Batcher(self.contract, self.session.run, allow_non_finite=allow)
        self.prepare()
        logger.info("%s ready, %d threads, %.2f ms", self._name, settings.threads, warm_s * 1e3)

    def prepare(self) -> None:
        """Load what a handler of one's own needs besides the model; files lie in `folder`."""

    def decode(self, request: Request) -> tuple[Arrays, Any]:
        """Turn a request into input tensors and whatever `encode` needs to know about it.

        Raises:
            RequestError: The client gets its message and status.
        """
        message = codec.decode(request.body, request.content_type, self.contract)
        return message.inputs, message

    def encode(self, outputs: Arrays, state: Any) -> Reply:  # noqa: ANN401  of decode's choice
        """Turn one request's output tensors into its answer; `state` is from `decode`.

        Raises:
            RequestError: The client gets its message and status.
        """
        body, content_type = codec.encode(outputs, state, self._name, self._version)
        return Reply(body, content_type)

    def advice(self) -> object:
        """What a request should look like; a JSON value that goes into every 4xx answer."""
        return [str(spec) for spec in self.contract.inputs]

    def handle(self, data: Sequence[Mapping[str, object]], context: Context) -> list[bytes]:
        """Answer a batch; TorchServe's entry point.

        Args:
            data: One mapping for each request: `body`, or form fields by name.
            context: TorchServe's; takes each answer's status and headers.
        """
        jobs = [
            _Job(self._request(row, context.get_all_request_header(index)))
            for index, row in enumerate(data)
        ]
        requests = [self._decode(job) for job in jobs]
        started = time.perf_counter()
        answers = self._batcher(requests)
        infer_s = time.perf_counter() - started
        return [
            self._finish(index, job, answer, infer_s, context)
            for index, (job, answer) in enumerate(zip(jobs, answers, strict=True))
        ]

    def _request(self, row: Mapping[str, object], headers: Mapping[str, Any]) -> Request:
        """The body is `body` or `data`, or else the only form field there is."""
        names = list(row)
        name = next((n for n in ("body", "data") if n in row), names[0] if names else "")
        part = headers.get(name)
        content_type = part.get("content-type") if isinstance(part, dict) else None
        fields = {key: value for key, value in row.items() if key != name}
        return Request(row.get(name, b""), content_type or "", fields)

    def _decode(self, job: _Job) -> Arrays | MarshipError:
        started = time.perf_counter()
        try:
            inputs, job.state = self.decode(job.request)
        except MarshipError as error:
            return error
        except Exception:  # a fault in one request's decoding must not reach its neighbours
            return _hidden("decode")
        finally:
            job.decode_s = time.perf_counter() - started
        return inputs

    def _encode(self, job: _Job, answer: Arrays | MarshipError) -> Reply:
        try:
            if isinstance(answer, MarshipError):
                raise answer
            reply = self.encode(answer, job.state)
            if len(reply.body) > self._max_response_bytes:
                raise TooLargeError(
                    f"the answer must be at most {self._max_response_bytes} bytes, got "
                    f"{len(reply.body)}. Ask for fewer rows, or raise max_response_size."
                )
        except RequestError as error:
            return self._error(error, {"expects": self.advice()})
        except ModelError:
            return self._error(_hidden("run"))
        except MarshipError as error:
            return self._error(error)
        except Exception:  # a fault in one answer's encoding must not reach its neighbours
            return self._error(_hidden("encode"))
        return reply

    def _error(self, error: MarshipError, more: Mapping[str, object] | None = None) -> Reply:
        body = {"code": error.code, "message": str(error), **(more or {})}
        return Reply(orjson.dumps(body), codec.JSON_TYPE, error.status)

    def _finish(
        self, index: int, job: _Job, answer: Arrays | MarshipError, infer_s: float, context: Context
    ) -> bytes:
        started = time.perf_counter()
        reply = self._encode(job, answer)
        encode_s = time.perf_counter() - started
        # Server-Timing, W3C: durations in milliseconds
        timing = (
            f"decode;dur={job.decode_s * 1e3:.3f}, infer;dur={infer_s * 1e3:.3f}, "
            f"encode;dur={encode_s * 1e3:.3f}"
        )
        context.set_response_content_type(index, reply.content_type)
        context.set_response_header(index, "Server-Timing", timing)
        if reply.status != HTTPStatus.OK:
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
        return reply.body


def _hidden(step: str) -> MarshipError:
    """Log the exception being handled; the client gets a reference to it and no more."""
    reference = uuid.uuid4().hex[:12]
    logger.exception("request failed to %s, reference %s", step, reference)
    return MarshipError(
        f"the server must {step} every valid request, and failed. "
        f"Its log has the reason under reference {reference}."
    )
