"""The tree of errors.

    MarshipError
    |-- UsageError              a command or a setting that cannot be meant
    |-- DataError               training data that is missing, damaged or of the wrong kind
    |-- CheckpointError         weights or run state that cannot be used
    |-- TrainingError           a loss that is no number any more
    |-- ModelError              an ONNX file that cannot be read or run
    |   |-- ParityError         two ways to run one model disagree
    |   `-- SealError           wrong key, corrupted, or it belongs to another archive
    |-- PackageError            an archive that cannot be built or read
    |   `-- SignatureError      it is unsigned, altered, or signed by a key that is not trusted
    |-- LoadError               a worker refuses to serve: digest, golden outputs, provider
    |-- StorageError            a file that cannot be written: no space, no permission
    |-- ServerError             TorchServe could not be started, reached, or did not do as told
    |   |-- NotRunningError     nobody answers at the address
    |   |-- NoAnswerError       the connection ended, or the time, before the answer came
    |   |-- TLSError            there is no TLS with it: its certificate, its protocol
    |   |-- WorkerDiedError     the worker crashed while it handled the request
    |   |-- ResponseTimeoutError  the worker took longer than its responseTimeout, and was ended
    |   |-- TokenError          the token is missing, wrong or too old
    |   |-- NotFoundError       no such model or version on the server
    |   `-- RolloutError        a new version did not take over, and was taken back
    `-- RequestError            what a client sent cannot be answered (HTTP 4xx)
        |-- MalformedError      400, the bytes are not what their type says
        |-- InvalidInputError   400, well formed, but against the model's contract
        |-- TooLargeError       413
        |-- UnsupportedMediaError  415
        `-- RateLimitError      429, more requests than the proxy lets one client make

Every class knows its HTTP status and its stable code: clients branch on the code, never on
the message. A message reads `<thing> must <rule>, got <value>. <What to do>.`
"""

from typing import ClassVar


class MarshipError(Exception):
    """The base of all errors that marship raises on purpose.

    Example:
        >>> try:
        ...     marship.package("missing.onnx")
        ... except marship.MarshipError as error:
        ...     print(error.code)
        usage
    """

    status: int = 500  # of an answer that a client got: the one that came
    code: ClassVar[str] = "internal"


def kinds(base: type[MarshipError] = MarshipError) -> list[type[MarshipError]]:
    """A class of errors and all that derive from it, each before those that derive from it."""
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def bare(error: MarshipError) -> MarshipError:
    """The error, without the calls that it came through.

    They hold all that they worked on, such as a decoded picture, for as long as the error is
    kept; and where they hold the error too, until Python looks for cycles.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


class UsageError(MarshipError):
    """A command, flag or setting that cannot be meant; exit code 2."""

    code = "usage"


class DataError(MarshipError):
    """Training data is missing, damaged or of the wrong kind."""

    code = "data"


class CheckpointError(MarshipError):
    """A checkpoint is missing, damaged, or belongs to another model or run."""

    code = "checkpoint"


class TrainingError(MarshipError):
    """Training cannot go on: a loss or gradient is not finite."""

    code = "training"


class ModelError(MarshipError):
    """An ONNX model cannot be read, checked or run."""

    code = "model"


class ParityError(ModelError):
    """Two ways to run one model differ by more than the stated tolerance."""

    code = "parity"


class SealError(ModelError):
    """A sealed file cannot be opened, or its key cannot be had."""

    code = "seal"


class PackageError(MarshipError):
    """An archive cannot be built or read."""

    code = "package"


class SignatureError(PackageError):
    """An archive is unsigned, altered, or signed by a key that is not trusted."""

    code = "signature"


class LoadError(MarshipError):
    """A worker refuses to serve its model."""

    code = "load"


class StorageError(MarshipError):
    """A file cannot be written: no space, no permission."""

    code = "storage"


class ServerError(MarshipError):
    """TorchServe could not be started, or did not do what it was asked."""

    code = "server"


class NotRunningError(ServerError):
    """Nobody answers at the server's address."""

    status = 503
    code = "not_running"


class NoAnswerError(ServerError):
    """The connection ended, or the time, before the answer came."""

    status = 504
    code = "no_answer"
    timed_out: bool = False  # else the connection ended


class TLSError(ServerError):
    """The server's certificate is not accepted, or it speaks no TLS that we speak."""

    status = 502
    code = "tls"


class WorkerDiedError(ServerError):
    """The worker crashed while it handled the request; another may handle it."""

    code = "worker_died"


class ResponseTimeoutError(ServerError):
    """The worker took longer than its responseTimeout and was ended; so would the next one be."""

    status = 504
    code = "response_timeout"


class TokenError(ServerError):
    """The token is missing, wrong or expired."""

    status = 401
    code = "token"


class NotFoundError(ServerError):
    """The server has no such model or version."""

    status = 404
    code = "not_found"


class RolloutError(ServerError):
    """A new version of a model did not take over; the message says what the server has now."""

    code = "rollout"


class RequestError(MarshipError):
    """What a client sent cannot be answered."""

    status = 400
    code = "bad_request"


class MalformedError(RequestError):
    """The bytes are not what their content type says."""

    code = "malformed"


class InvalidInputError(RequestError):
    """Well formed, but not what the model's contract asks for."""

    code = "invalid_input"


class TooLargeError(RequestError):
    """The request, or the answer it asks for, is over the size limit."""

    status = 413
    code = "too_large"


class UnsupportedMediaError(RequestError):
    """The model does not accept this content type."""

    status = 415
    code = "unsupported_media"


class RateLimitError(RequestError):
    """One client asked more, or more at a time, than the proxy lets it."""

    status = 429
    code = "rate_limit"
