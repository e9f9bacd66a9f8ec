"""A ModelInferRequest, read within limits.

protobuf makes objects of all that a message holds, before anyone can count it: 16 MB of empty
inputs are 8 million objects, and seconds in which the event loop serves nobody. So fields are
counted first, and values stay bytes until tensors.py packs them.
"""

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from marship.engines.gateway import wire
from marship.engines.gateway.messages import Message, kind
from marship.errors import MalformedError

MOST: Final = 1024
"""Of anything that repeats: inputs, outputs, raw contents, parameters."""
MOST_DIMENSIONS: Final = 64
"""As many as NumPy's arrays have."""
MOST_FIELDS: Final = 1 << 13
"""Of a request and its inputs, without values."""
MOST_BYTES: Final = 1 << 18
"""Of a request without values."""

_INPUTS, _RAW = 5, 7
_CONTENTS = 5
_REQUEST = {4: "parameters", _INPUTS: "inputs", 6: "outputs", _RAW: "raw_input_contents"}
_INPUT = {4: "parameters", _CONTENTS: "contents"}


@dataclass(slots=True)
class InferRequest:
    """A request.

    Attributes:
        data: The whole message.
        message: The request without values.
        raw: Where the raw contents lie in the data.
        typed: Where the typed contents of each input lie.
    """

    data: bytes
    message: Message
    raw: list[tuple[int, int]] = field(default_factory=list)
    typed: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def is_typed(self) -> bool:
        """Whether it has its values in typed contents, and wants them so."""
        return bool(self.message.inputs) and not self.raw


def parse(name: str, data: bytes) -> Message:
    """A message without values.

    Raises:
        MalformedError: The bytes are no such message, or it is too large.
    """
    if len(data) > MOST_BYTES:
        raise _too_many("message", MOST_BYTES, "bytes", str(len(data)))
    try:
        return kind(name).FromString(data)
    except DecodeError as error:
        raise MalformedError(f"the message must be {name}, got: {error}.") from error


def read(data: bytes) -> InferRequest:
    """A request, with its values left where they are.

    Raises:
        MalformedError: The bytes are no such message, or it is over the limits.
    """
    return _Reader(data).read()


class _Reader:
    """What was counted of a message so far."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = self._bytes = 0

    def read(self) -> InferRequest:
        raw: list[tuple[int, int]] = []
        inputs: list[tuple[int, int]] = []
        rest = self._split("request", (0, len(self._data)), _REQUEST, {_RAW: raw, _INPUTS: inputs})
        typed: list[list[tuple[int, int]]] = []
        descriptions: list[bytes] = []
        for place in inputs:
            typed.append([])
            descriptions.append(self._split("input", place, _INPUT, {_CONTENTS: typed[-1]}))
        message = parse("ModelInferRequest", rest)
        for description in descriptions:
            message.inputs.append(parse("ModelInferRequest.InferInputTensor", description))
        _check_message(message)
        return InferRequest(self._data, message, raw, typed)

    def _split(
        self,
        thing: str,
        place: tuple[int, int],
        names: dict[int, str],
        values: dict[int, list[tuple[int, int]]],
    ) -> bytes:
        """Put where values lie into `values`, and return the other fields."""
        counts = dict.fromkeys(names, 0)
        kept = []
        for number, written, start, value, end in wire.fields(self._data, *place):
            if number in names:
                counts[number] += 1
                if counts[number] > MOST:
                    raise _too_many(thing, MOST, names[number])
            if number in values and written == wire.BYTES:
                values[number].append((value, end))
                self._bytes += value - start
            else:
                kept.append(self._data[start:end])
                self._bytes += end - start
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise _too_many("request", MOST_FIELDS, "fields")
            if self._bytes > MOST_BYTES:
                raise _too_many("request", MOST_BYTES, "bytes besides its tensors' values")
        return b"".join(kept)


def _check_message(message: Message) -> None:
    """Hold against the limits what is counted once it is parsed."""
    for tensor in message.inputs:
        if len(tensor.shape) > MOST_DIMENSIONS:
            raise _too_many("input", MOST_DIMENSIONS, "dimensions", str(len(tensor.shape)))
    for output in message.outputs:
        if len(output.parameters) > MOST:
            raise _too_many("output", MOST, "parameters", str(len(output.parameters)))


def _too_many(thing: str, most: int, what: str, got: str = "more") -> MalformedError:
    return MalformedError(f"the {thing} must have {most} {what} at most, got {got}.")
