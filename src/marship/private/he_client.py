"""HeClient: asks a private model without showing it what is asked, nor what it answers."""

import secrets
import threading
from pathlib import Path
from typing import Any

import numpy as np

from marship.client import Client
from marship.errors import (
    DataError,
    DecryptionError,
    KeysMissingError,
    MalformedError,
    UsageError,
)
from marship.private import client_file as client_files
from marship.private.client_file import ClientFile
from marship.private.encoder import Encoder
from marship.private.he_keys import OwnKeys
from marship.private.known import KnownCases
from marship.private.rows import Values, read
from marship.serving.private.ckks import SecretKey
from marship.serving.private.keys import KeySet
from marship.serving.private.message import (
    ANSWER,
    HAVE,
    HE_TYPE,
    PIECE,
    QUESTION,
    HeMessage,
)
from marship.serving.private.public import PublicPlan

_OF = 1 << 32


class HeClient:
    """Asks a model that computes on encrypted values.

    Keys are made when they are needed and uploaded when the server asks for them. The secret key
    never leaves this process, or its file. Nothing that was decrypted is sent anywhere, and no
    question is sent again because its answer did not decrypt.

    Args:
        client_file: NAME.client.json, from where the model was packaged.
        server: A `marship.Client`, or the address of the inference API.
        keys: A file of mode 0600 that keeps the keys; None keeps them in memory.
        trust: A folder of trusted keys that must have signed the client file; None takes it as
            it is.
        version: The model's version on the server; None is the default one.
        check_share: The share of further questions whose answers are known, which find a server
            that answers something else: NAME.known.npz beside the client file. They stand at
            random places, and the server cannot tell them from others. 0 needs no such file.

    Attributes:
        file: What the client knows of the model.
        check_share: The share of further questions that are asked.

    Example:
        >>> client = HeClient("digits.client.json", "http://127.0.0.1:8080")  # doctest: +SKIP
        >>> client.predict(picture).argmax()  # doctest: +SKIP
        7
    """

    def __init__(  # noqa: PLR0913  keyword-only
        self,
        client_file: str | Path,
        server: Client | str,
        *,
        keys: str | Path | None = None,
        trust: str | Path | None = None,
        version: str | None = None,
        check_share: float = 0.05,
    ) -> None:
        self.file: ClientFile = client_files.read(
            Path(client_file), client_files.KINDS[0], Path(trust) if trust else None
        )
        self._plan, self._noise = _plan(self.file)
        if not 0 <= check_share < 1:
            raise UsageError(f"check_share must be from 0 to below 1, got {check_share}.")
        self._server = Client(inference_url=server) if isinstance(server, str) else server
        self._version, self.check_share = version, check_share
        self._keys, self._lock = OwnKeys(self._plan, Path(keys) if keys else None), threading.Lock()
        self._known = KnownCases.beside(Path(client_file), self.file) if check_share else None
        self._encoder = Encoder.beside(Path(client_file), self.file)

    def predict(self, x: Any) -> Values:  # noqa: ANN401  what numpy makes an array of
        """The model's output, float64 (rows, ...), or (...) for a single row.

        Args:
            x: Rows of the model's input, (rows, ...), or one row, (...). Where the client has a
                part of the model, NAME.encoder.onnx: rows of its inputs by name.

        Raises:
            UsageError: The shape is another one, or a value is not finite, or too large.
            DecryptionError: An answer does not decrypt, or one that is known is another.
            RequestError: The server refuses: another model or version.
            ServerError: The server cannot be reached, or has no room for keys.
        """
        rows, is_single = self._rows(x if self._encoder is None else self._encoder.run(x))
        with self._lock:
            answers = np.stack([self._checked(row) for row in rows])
        answers = answers.reshape(len(rows), *self.file.output.shape)
        return np.asarray(answers[0] if is_single else answers)

    def _rows(self, x: Any) -> tuple[Values, bool]:  # noqa: ANN401
        rows, is_single = read(x, self.file.input.shape)
        if len(rows) > 1:  # before the rows in front of it are sent; one alone is encoded first
            worst = rows[np.abs(rows).max(axis=1).argmax()]
            self._plan.ring.encode(self._plan.packed(worst), 0, self._plan.ring.scale)
        return rows, is_single

    def _checked(self, row: Values) -> Values:
        """The answer to a row, perhaps with a known case before or behind it."""
        share = self.check_share
        checks = share > 0 and secrets.randbelow(_OF) < share / (1 - share) * _OF
        is_first = secrets.randbelow(2) == 0
        if checks and is_first:
            self._check()
        answer = self._ask(row)
        if checks and not is_first:
            self._check()
        return answer

    def _check(self) -> None:
        """Ask for a known case.

        Raises:
            DecryptionError: The answer is another one.
        """
        assert self._known is not None  # noqa: S101  a client with a share has read them
        number = secrets.randbelow(len(self._known.inputs))
        answer = self._ask(self._known.inputs[number])
        difference = float(np.abs(answer - self._known.outputs[number]).max())
        if not difference <= self.file.error:
            self._keys.fail()  # the server may watch what follows, as when none decrypts
            raise DecryptionError(
                f"a known case must have its answer within {self.file.error:g}, got a difference "
                f"of {difference:g}. The server computes something else than the model: do not "
                "use its answers."
            )

    def _ask(self, row: Values) -> Values:
        secret, keys = self._keys.get()
        question = secret.encrypt(self._plan.packed(row))
        message = HeMessage(QUESTION, bytes.fromhex(self._plan.digest), keys.id, question)
        try:
            body = self._send(message)
        except KeysMissingError:
            self._upload(keys)
            body = self._send(message)
        try:
            answer = self._decrypted(secret, message, body)
        except (DecryptionError, MalformedError) as error:
            self._keys.fail()
            raise DecryptionError(str(error)) from error
        return answer

    def _decrypted(self, secret: SecretKey, question: HeMessage, body: object) -> Values:
        answer = HeMessage.from_bytes(body if isinstance(body, bytes) else b"")
        stated = (answer.kind, answer.plan, answer.keys, answer.asked)
        if stated != (ANSWER, question.plan, question.keys, question.digest):
            raise DecryptionError(
                "an answer must be to the client's own question, keys and model, got another. Ask "
                "the server's operator."
            )
        slots = secret.decrypt(answer.payload, self._plan.level)
        noise = self._plan.noise(slots)
        if not noise <= self._noise:  # NaN, too
            raise DecryptionError(
                f"an answer must decrypt with noise of at most {self._noise:g}, got {noise:g}: it "
                "is for other keys, was computed otherwise, or values exceed what the model was "
                "packaged for. Ask with values as the model was trained on."
            )
        return self._plan.unpacked(slots)

    def _upload(self, keys: KeySet) -> None:
        """Send the pieces that the server lacks."""
        plan = bytes.fromhex(self._plan.digest)
        have = self._send(HeMessage(HAVE, plan, keys.id))
        found = have.get("have") if isinstance(have, dict) else None
        there = found if isinstance(found, list) else []  # the server may say anything
        for number, piece in enumerate(keys.pieces):
            if number not in there:
                payload = keys.manifest + piece
                self._send(HeMessage(PIECE, plan, keys.id, payload, number, len(keys.pieces)))

    def _send(self, message: HeMessage) -> Any:  # noqa: ANN401  bytes, or a JSON value
        body, model = message.to_bytes(), self.file.model
        return self._server.predict(model, body, version=self._version, content_type=HE_TYPE)


def _plan(file: ClientFile) -> tuple[PublicPlan, float]:
    """The public plan, and the noise of right answers at most."""
    value, noise = file.plan.get("public"), file.plan.get("noise")
    if not isinstance(value, dict) or not isinstance(noise, float) or not 0 < noise < np.inf:
        raise DataError(
            "a client file must hold the public part of a plan, got none. Get it again "
            "from where the model is packaged."
        )
    plan = PublicPlan.from_json(value)
    if (plan.inputs, plan.outputs, plan.digest) != (file.input.size, file.output.size, file.digest):
        raise DataError(
            "a client file must be of one model, got parts of several. Get it again "
            "from where the model is packaged."
        )
    return plan, noise
