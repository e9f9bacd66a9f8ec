"""MpcClient: asks three parties, none of which learns the question or the answer. Experimental."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marship.client import Client
from marship.errors import DataError, PrivateError, ReplayError, UsageError
from marship.private import client_file as client_files
from marship.private.mpc import archives
from marship.private.rows import shaped
from marship.serving.formats.codec import OCTETS_TYPE
from marship.serving.private.mpc import boxes, ring
from marship.serving.private.mpc.boxes import Sizes
from marship.serving.private.mpc.program import Card
from marship.serving.private.mpc.shares import PARTIES

TRIES = 3
"""With fresh shares, of a request whose id was used."""
SECOND_TRIES = 2
"""In a client's life, after an answer out of range: a rescaling fails once in many thousand rows at
most, and parties see that the question is asked again."""
MOST_BYTES = 6_000_000
"""Of a request, unless one row takes more: servers take 6.5 MB unless told otherwise."""

Values = npt.NDArray[np.float64]


class MpcClient:
    """Asks a model that three parties share.

    Each input is dealt into shares of which each party gets its own, sealed for it alone. An answer
    out of range is asked for again with fresh shares, at most `SECOND_TRIES` times in all.

    Args:
        client_file: NAME.client.json, from where the model was packaged: it names the parties.
        server: A `marship.Client` of the server of party 0, or the address of its inference API.
        trust: A folder of trusted keys that must have signed the client file; None takes it as
            it is.

    Example:
        >>> client = MpcClient("digits.client.json", "http://127.0.0.1:8080")  # doctest: +SKIP
        >>> client.predict(picture).argmax()  # doctest: +SKIP
        7
    """

    def __init__(
        self, client_file: str | Path, server: Client | str, *, trust: str | Path | None = None
    ) -> None:
        path = Path(client_file)
        self.file = client_files.read(path, archives.MPC, Path(trust) if trust else None)
        try:
            self._cards = tuple(Card(**card) for card in self.file.plan["cards"])
            self._limit = float(self.file.plan["input_limit"])
            self._factor = float(self.file.plan["input_factor"])
            self._sizes = Sizes(
                bytes.fromhex(self.file.digest), self.file.input.size, self.file.output.size
            )
            if [card.party for card in self._cards] != [0, 1, 2]:
                raise ValueError("other parties")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} must hold the cards of three parties, got {error!r}. Get it again from "
                "where the model is packaged."
            ) from error
        self._second_tries = SECOND_TRIES
        self._server = Client(inference_url=server) if isinstance(server, str) else server

    def predict(self, x: Any) -> Values:  # noqa: ANN401  what numpy makes an array of
        """The model's output, float64 (rows, ...), or (...) for a single row.

        Args:
            x: Rows of the model's input, (rows, ...), or one row, (...).

        Raises:
            UsageError: The shape is another one, or a value is out of the model's range.
            PrivateError: An answer is out of range, or parties disagree about one. Do not use it,
                and do not tell the parties: a cheat learns from it.
            PartyError: A party is away, slow, or has another model.
            RequestError: The parties refuse: another model or version.
            ServerError: The server cannot be reached.
        """
        rows, is_single = self._rows(x)
        some = self._rows_of_a_request()
        chunks = [rows[n : n + some] for n in range(0, len(rows), some)]
        answers = np.concatenate([self._answered(chunk) for chunk in chunks])
        answers = answers.reshape(len(rows), *self.file.output.shape)
        return np.asarray(answers[0] if is_single else answers)

    def _rows_of_a_request(self) -> int:
        row_bytes = sum(self._sizes.box_bytes(party, 1) for party in range(PARTIES))
        return max(1, min(boxes.MOST_ROWS, MOST_BYTES // row_bytes))

    def _answered(self, rows: Values) -> Values:
        while True:
            output = ring.decode(self._asked(ring.encode(rows * self._factor)))
            if np.abs(output).max() <= ring.LIMIT:
                return output
            if not self._second_tries:
                raise PrivateError(
                    f"an answer must stay within {ring.LIMIT:g}, got another, after "
                    f"{SECOND_TRIES} that were asked for again. A party does not follow the "
                    "protocol, or has a fault: see the parties' logs."
                )
            self._second_tries -= 1

    def _asked(self, words: ring.Words) -> ring.Words:
        for _ in range(TRIES - 1):
            with contextlib.suppress(ReplayError):  # the client below repeated it after a fault
                return self._ask(words)
        return self._ask(words)

    def _ask(self, words: ring.Words) -> ring.Words:
        body, request_id, keys = boxes.seal(words, self._sizes, self._cards)
        answer = self._server.predict(
            self.file.model, body, version=self.file.version, content_type=OCTETS_TYPE
        )
        if not isinstance(answer, bytes):
            raise PrivateError("an answer must be sealed shares, got something else.")
        return boxes.unseal(answer, self._sizes, request_id, keys, len(words))

    def _rows(self, x: Any) -> tuple[Values, bool]:  # noqa: ANN401
        values, is_single = shaped(x, self.file.input.shape)
        largest = np.abs(values).max()
        if not largest <= self._limit:  # NaN is refused, too
            raise UsageError(
                f"x must be within {self._limit:g}, for which the model's values are bounded, got "
                f"up to {largest:g}. Scale it as in training, or package with --option input_limit="
                "NUMBER."
            )
        return values, is_single
