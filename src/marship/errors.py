"""The tree of errors.

    MarshipError
    |-- UsageError              an invalid command, flag or setting
    |-- DataError               training data that is missing, corrupted or of the wrong kind
    |-- CheckpointError         weights or run state that cannot be used
    |-- TrainingError           a loss or gradient that is not finite
    |-- ModelError              an ONNX file that cannot be read or run
    |   |-- ParityError         two ways to run one model disagree
    |   `-- SealError           a sealed file with a wrong key, corrupted, or of another archive
    |-- PackageError            an archive that cannot be built or read
    |   `-- SignatureError      unsigned, modified, or signed by a key that is not trusted
    |-- LoadError               a model that cannot be loaded: digest, golden outputs, provider
    |-- StorageError            a file that cannot be written: no space, no permission
    |-- DecryptionError         an encrypted response that is not an answer to what was asked
    |-- ServerError             TorchServe could not be started or reached, or a call to it failed
    |   |-- NotRunningError     connection refused: no server at the address
    |   |-- NoAnswerError       connection lost or timed out before the response was complete
    |   |-- TLSError            TLS handshake failed: certificate or protocol version
    |   |-- WorkerDiedError     the worker crashed while handling the request
    |   |-- ResponseTimeoutError  the worker exceeded its responseTimeout and was killed
    |   |-- TokenError          the token is missing, wrong or expired
    |   |-- NotFoundError       no such model or version on the server
    |   |-- ScaledToZeroError   503, the model has no workers, and none are wanted
    |   |-- PartyError          503, three parties cannot compute together at the moment
    |   |-- UnsupportedError    501, an operation of the protocol that models here do not have
    |   |-- KeyStoreFullError   507, no room for evaluation keys of another client
    |   `-- RolloutError        a rollout failed and was rolled back
    |-- PrivateError            a private answer out of range, or one that parties disagree about
    `-- RequestError            an invalid request (HTTP 4xx)
        |-- MalformedError      400, the body does not parse as its content type
        |-- InvalidInputError   400, well formed, but violates the model's contract
        |-- ReplayError         409, a private request that was sent before
        |-- KeysMissingError    409, the server lacks the client's evaluation keys
        |-- TooLargeError       413
        |-- UnsupportedMediaError  415
        `-- RateLimitError      429, the proxy's rate limit for one client

Each class has an HTTP status and a stable code. Branch on the code, never on the message.
A message reads `<thing> must <rule>, got <value>. <What to do>.`
"""

from typing import ClassVar, Self


class MarshipError(Exception):
    """Base class of all errors that marship raises deliberately.

    Example:
        >>> try:
        ...     marship.package("missing.onnx")
        ... except marship.MarshipError as error:
        ...     print(error.code)
        usage
    """

    status: int = 500  # of an error that a client received: the response's own
    code: ClassVar[str] = "internal"


def kinds(base: type[MarshipError] = MarshipError) -> list[type[MarshipError]]:
    """An error class and all its subclasses, each before its own subclasses."""
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def bare(error: MarshipError) -> MarshipError:
    """The error without its traceback.

    A traceback keeps the frames' local variables alive, such as a decoded image, as long as the
    error is kept; if a frame refers to the error, until the cyclic garbage collector runs.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


class UsageError(MarshipError):
    """An invalid command, flag or setting; exit code 2."""

    code = "usage"


class DataError(MarshipError):
    """Training data is missing, corrupted or of the wrong kind."""

    code = "data"


class CheckpointError(MarshipError):
    """A checkpoint is missing, corrupted, or belongs to another model or run."""

    code = "checkpoint"


class TrainingError(MarshipError):
    """Training cannot continue: a loss or gradient is not finite."""

    code = "training"


class ModelError(MarshipError):
    """An ONNX model cannot be read, checked or run."""

    code = "model"


class ParityError(ModelError):
    """Two ways to run one model differ by more than the stated tolerance."""

    code = "parity"


class SealError(ModelError):
    """A sealed file cannot be decrypted, or its key cannot be read."""

    code = "seal"


class PackageError(MarshipError):
    """An archive cannot be built or read."""

    code = "package"


class SignatureError(PackageError):
    """An archive is unsigned, modified, or signed by a key that is not trusted."""

    code = "signature"


class LoadError(MarshipError):
    """A model cannot be loaded: a worker refuses to serve it."""

    code = "load"


class StorageError(MarshipError):
    """A file cannot be written: no space, no permission."""

    code = "storage"


class DecryptionError(MarshipError):
    """An encrypted response does not decrypt, or a known case has another answer.

    It stays with the client: a server that is told whether its responses decrypt learns from it.
    """

    code = "decryption"


class ServerError(MarshipError):
    """TorchServe could not be started or reached, or a call to it failed."""

    code = "server"


class NotRunningError(ServerError):
    """Connection refused: no server listens at the address."""

    status = 503
    code = "not_running"


class NoAnswerError(ServerError):
    """The connection was lost or timed out before the response was complete."""

    status = 504
    code = "no_answer"
    timed_out: bool = False  # False: the connection was lost


class TLSError(ServerError):
    """The TLS handshake failed: the certificate is not trusted, or there is no common version."""

    status = 502
    code = "tls"


class WorkerDiedError(ServerError):
    """The worker crashed while handling the request; a retry may succeed on another worker."""

    code = "worker_died"


class ResponseTimeoutError(ServerError):
    """The worker exceeded its responseTimeout and was killed; a retry would time out as well."""

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


class ScaledToZeroError(ServerError):
    """The model has no workers and none are wanted: a retry would find none either."""

    status = 503
    code = "scaled_to_zero"

    @classmethod
    def of(cls, name: str, version: str | None = None) -> Self:
        """The error for a model, with the command that gives it a worker."""
        which = f"{name} version {version}" if version else name
        more = f" --version {version}" if version else ""
        return cls(
            f"{which} must be scaled to at least 1, got no worker, and none is wanted. "
            f"Start one: marship scale {name} 1{more}"
        )


class PartyError(ServerError):
    """A party of a private computation is away, slow, or has another model; the others wait."""

    status = 503
    code = "party"


class UnsupportedError(ServerError):
    """The protocol has the operation, and models here do not: explanations."""

    status = 501
    code = "unsupported"


class KeyStoreFullError(ServerError):
    """The server has no room for evaluation keys of another client."""

    status = 507
    code = "key_store_full"


class RolloutError(ServerError):
    """A rollout failed; the message says which versions the server has now."""

    code = "rollout"


class PrivateError(MarshipError):
    """A private answer is out of the model's range, or parties disagree about it."""

    code = "private"


class RequestError(MarshipError):
    """The client sent an invalid request."""

    status = 400
    code = "bad_request"


class MalformedError(RequestError):
    """The body does not parse as its content type."""

    code = "malformed"


class InvalidInputError(RequestError):
    """The request is well formed, but violates the model's contract."""

    code = "invalid_input"


class ReplayError(RequestError):
    """A private request's id was used before: it must be sent with fresh shares."""

    status = 409
    code = "replayed"


class KeysMissingError(RequestError):
    """The server lacks evaluation keys of this client, or some pieces of them."""

    status = 409
    code = "keys_missing"


class TooLargeError(RequestError):
    """The request, or the response to it, exceeds a size limit."""

    status = 413
    code = "too_large"


class UnsupportedMediaError(RequestError):
    """The model does not accept this content type."""

    status = 415
    code = "unsupported_media"


class RateLimitError(RequestError):
    """The client exceeded the proxy's limit of requests per second or of open connections."""

    status = 429
    code = "rate_limit"
