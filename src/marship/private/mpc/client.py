"""MpcClient: asks three parties, none of which learns the question or the answer. Experimental."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from marship import texts
from marship.errors import InvalidInputError, PrivateError, ReplayError, UsageError
from marship.private.mpc import archives
from marship.serving.formats.codec import OCTETS_TYPE
from marship.serving.private.mpc import boxes, ring
from marship.serving.private.mpc.boxes import Sizes
from marship.serving.private.mpc.program import Card

if TYPE_CHECKING:
    from marship.client import Client
    from marship.contract import Array

TRIES = 3
"""A rescaling fails rarely, and is seen: fresh shares then."""


class MpcClient:
    """A client of a model that three parties share.

    Args:
        client_file: `NAME.client.json`, which `marship package --private mpc` wrote. It names the
            parties' keys: take it from whom you trust.
        server: A client of the server that runs party 0.

    Example:
        >>> MpcClient("nowhere.client.json", None)
        Traceback (most recent call last):
        marship.errors.UsageError: nowhere.client.json must be a client file of three parties, \
got: [Errno 2] No such file or directory: 'nowhere.client.json'. Package the model with: \
marship package RUN --private mpc
    """

    def __init__(self, client_file: str | Path, server: Client) -> None:
        path = Path(client_file)
        try:
            fields = texts.json_value(path.read_bytes())
            if not isinstance(fields, dict) or fields["kind"] != "mpc":
                raise ValueError("one of another kind")
            if fields["format"] != archives.CLIENT_FORMAT:
                raise ValueError("another format")
            self._read(fields)
        except (OSError, ValueError, KeyError, TypeError, texts.TextError) as error:
            raise UsageError(
                f"{path} must be a client file of three parties, got: {error}. Package the model "
                "with: marship package RUN --private mpc"
            ) from error
        self._server = server

    def _read(self, fields: dict[str, Any]) -> None:
        self.model, self.version = str(fields["model"]), str(fields["version"])
        self._input, self._output = (archives.spec(fields[name]) for name in ("input", "output"))
        self._shape = tuple(int(size) for size in self._input.shape[1:])
        self._output_shape = tuple(int(size) for size in self._output.shape[1:])
        self._limit = float(fields["input_limit"])
        self._cards = tuple(Card(**card) for card in fields["cards"])
        digest = bytes.fromhex(fields["digest"])
        sizes = int(np.prod(self._shape)), int(np.prod(self._output_shape))
        self._sizes = Sizes(digest, *sizes)
        if len(digest) != 32 or [card.party for card in self._cards] != [0, 1, 2]:  # noqa: PLR2004  SHA-256
            raise ValueError("another digest, or other parties")

    def predict(self, inputs: Array) -> npt.NDArray[np.float64]:
        """The model's output for rows of inputs.

        Args:
            inputs: Of the model's shape, (rows, ...), any float type; at most 64 rows.

        Returns:
            float64, (rows, ...), within some 2^-10 of the open model's.

        Raises:
            InvalidInputError: The inputs have another shape, or are out of the model's range.
            PartyError: A party is away, slow, or has another model.
            PrivateError: No answer was in range, or parties disagree about one: do not use it, and
                do not tell the parties.
            MarshipError: As `Client.predict`.
        """
        words = self._words(inputs)
        for _ in range(TRIES):
            try:
                output = ring.decode(self._asked(words))
            except ReplayError:  # the client below repeated it after a fault
                continue
            if np.abs(output).max(initial=0.0) <= ring.LIMIT:
                return output.reshape(len(words), *self._output_shape)
        raise PrivateError(
            f"an answer must stay within {ring.LIMIT:g}, got none in {TRIES} tries with fresh "
            "shares. A party does not follow the protocol, or has a fault: see the parties' logs."
        )

    def _asked(self, words: ring.Words) -> ring.Words:
        body, request_id, keys = boxes.seal(words, self._sizes, self._cards)
        answer = self._server.predict(
            self.model, body, version=self.version, content_type=OCTETS_TYPE
        )
        if not isinstance(answer, bytes):
            raise PrivateError("an answer must be sealed shares, got something else.")
        return boxes.unseal(answer, self._sizes, request_id, keys, len(words))

    def _words(self, inputs: Array) -> ring.Words:
        values = np.asarray(inputs)
        if values.dtype.kind not in "fiu" or values.shape[1:] != self._shape or not values.ndim:
            raise InvalidInputError(
                f"inputs must be numbers of shape (rows, {', '.join(map(str, self._shape))}), got "
                f"{values.dtype}{list(values.shape)}."
            )
        if not 1 <= len(values) <= boxes.MOST_ROWS:
            raise InvalidInputError(
                f"inputs must have from 1 to {boxes.MOST_ROWS} rows, got {len(values)}."
            )
        if not np.abs(values).max() <= self._limit:  # NaN is refused, too
            raise InvalidInputError(
                f"inputs must be within {self._limit:g}, got up to {np.abs(values).max():g}. Scale "
                "them as in training, or package with --option input_limit=NUMBER."
            )
        return ring.encode(values.reshape(len(values), -1))
