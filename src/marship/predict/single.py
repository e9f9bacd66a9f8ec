"""One request, whose response is printed, or written to a file, as it arrives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from marship import console, storage
from marship.client import Client
from marship.client.address import Address
from marship.errors import UsageError
from marship.predict.asking import plain
from marship.predict.bounds import LONGEST_STREAM_S, ServerLimits
from marship.predict.sources import may_be_sound
from marship.predict.transcripts import (
    FORMS,
    WHOLE,
    captions,
    clock,
    has_segments,
    segments,
    written,
)

LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Single:
    """The request, and the output of the response.

    Attributes:
        model: The model's name.
        body: The request.
        kind: Its media type.
        version: None is the default version.
        form: A transcript format; None is human-readable.
        out: The output file; None prints.
    """

    model: str
    body: bytes
    kind: str
    version: str | None = None
    form: str | None = None
    out: Path | None = None


def form_of(forms: Sequence[str], out: Path | None) -> str | None:
    """The format of a response, by the flag or the file's name.

    Raises:
        UsageError: There are several, they differ, or the file's suffix is not a format.
    """
    if out is None:
        if len(forms) > 1:
            raise UsageError(
                f"one response must be printed in one format, got --as {' --as '.join(forms)}. "
                "Name a table with --out to get files in all of them."
            )
        return forms[0] if forms else None
    form = out.suffix.lower().lstrip(".")
    if form not in FORMS:
        raise UsageError(
            f"--out must end in .{', .'.join(FORMS)} for one response, or in .csv or .jsonl for a "
            f"table, got {out}."
        )
    if set(forms) - {form}:
        raise UsageError(f"--as must be what --out ends in, got {', '.join(forms)} and {out}.")
    return form


def predict_one(single: Single, address: Address) -> Any:  # noqa: ANN401  any that a model answers
    """Predict, and print or write the response; segments of a transcript as they arrive.

    Returns:
        The whole response. Without a format the caller prints it, except for the segments.

    Raises:
        UsageError: The format needs segments, and the response has none.
        TooLargeError: The request exceeds the server's limit.
        MarshipError: As `Client.predict`.
        StorageError: The file cannot be written; what it held before is kept.
    """
    timeout_s = LONGEST_STREAM_S if may_be_sound(single.kind) else LONGEST_WAIT_S
    with address.client(timeout_s=timeout_s) as client:
        if refusal := ServerLimits.of(client).refusal(len(single.body), single.kind):
            raise refusal
        with _Segments(_lines(client, single)) as received:
            if single.form is None:
                for segment in received:
                    received.show(segment)
            else:
                with _writing(single.out) as stream:
                    _write(single.form, received, stream)
    return received.response


def _lines(client: Client, single: Single) -> Iterator[Any]:
    options = {"version": single.version, "content_type": single.kind}
    if may_be_sound(single.kind):
        yield from client.stream(single.model, single.body, **options)
    else:
        yield client.predict(single.model, single.body, **options)


def _write(form: str, received: "_Segments", stream: TextIO | None) -> None:
    if form == WHOLE:
        list(received)
        parts = iter([written(WHOLE, plain(received.response))])
    else:
        parts = captions(form, received.spoken())
    for part in parts:
        if stream is None:
            received.print(part)
        else:
            stream.write(part)


@contextmanager
def _writing(out: Path | None) -> Iterator[TextIO | None]:
    """The file, which replaces the old one at the end; None for the terminal."""
    if out is None:
        yield None
        return
    with storage.replacing(out) as draft, draft.open("w", encoding="utf-8") as stream:
        yield stream


class _Segments:
    """The segments among a response's lines, and a status line on stderr meanwhile.

    Attributes:
        response: The last line, which is the whole response.
    """

    def __init__(self, lines: Iterator[Any]) -> None:
        self._lines = lines
        self._status = console.err.status("waiting for the response")
        self.response: Any = None

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()

    def __iter__(self) -> Iterator[Any]:
        came = False
        for line in self._lines:
            self.response = line
            if _is_segment(line):
                came = True
                self._status.update(f"transcribed {clock(round(1000 * line['end']), '.')[:-4]}")
                yield line
        if not came and has_segments(self.response):  # it was not streamed
            yield from segments(self.response)

    def spoken(self) -> Iterator[Any]:
        """The segments of a response that must have a list of segments, possibly empty.

        Raises:
            UsageError: It has no list of segments.
        """
        yield from self
        segments(self.response)

    def show(self, segment: Any) -> None:  # noqa: ANN401  any JSON value
        """Print a segment for a person."""
        start = clock(round(1000 * segment["start"]), ".")[:-2]
        self.print(f"{start}  {segment['text']}\n")

    def print(self, text: str) -> None:
        """Print to stdout, which may be the terminal with the status line."""
        self._status.stop()
        console.write(text)
        console.out.file.flush()
        self._status.start()


def _is_segment(line: Any) -> bool:  # noqa: ANN401  any JSON value
    return isinstance(line, dict) and {"start", "end", "text"} <= line.keys()
