"""All measurements in a file, a line each as soon as it is made.

A run that was ended goes on from it: the search asks for the same again, and is told what is known.
"""

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marship import storage
from marship.errors import DataError
from marship.operate.tune.candidate import Candidate
from marship.operate.tune.figures import LoadSlice, Measured
from marship.operate.tune.search import ToMeasure

FILE = "measurements.jsonl"


class MeasurementFile:
    """The measurements of one archive under one load.

    Args:
        folder: Where the file is.
        key: What measurements depend on. A file with another key is begun anew.

    Attributes:
        known: How many measurements an earlier run left.
        is_replaced: Whether the file was of another key.

    Raises:
        DataError: The file is not readable.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._left: defaultdict[Candidate, deque[Measured]] = defaultdict(deque)
        self.known, self.is_replaced = 0, False
        with storage.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
            own = json.loads(json.dumps(key))
            if lines and self._parsed(lines[0]) == own:
                self._take(lines[1:])
                return
            self.is_replaced = bool(lines)
            self._path.write_text(json.dumps(own) + "\n")

    def _take(self, lines: list[bytes]) -> None:
        whole = lines
        if lines and not self._path.read_bytes().endswith(b"\n"):  # the last was cut off
            whole = lines[:-1]
            kept = self._path.read_bytes()[: -len(lines[-1])]
            self._path.write_bytes(kept)
        for line in whole:
            found = self._parsed(line)
            try:
                measured = Measured(
                    **{
                        **found,
                        "candidate": Candidate(**found["candidate"]),
                        "slices": tuple(LoadSlice(**one) for one in found["slices"]),
                    }
                )
            except (KeyError, TypeError) as error:
                raise self._unreadable(error) from error
            self._left[measured.candidate].append(measured)
            self.known += 1

    def _parsed(self, line: bytes) -> Any:  # noqa: ANN401  any JSON value
        try:
            return json.loads(line)
        except ValueError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path} must hold measurements, got: {error}. Remove it, or name another "
            "folder with --results."
        )

    def recorded(self, wanted: ToMeasure) -> Measured | None:
        """What an earlier run measured at this place; None if it did not get there."""
        return self._left[wanted.candidate].popleft() if self.knows(wanted) else None

    def knows(self, wanted: ToMeasure) -> bool:
        """Whether an earlier run measured it."""
        left = self._left[wanted.candidate]
        return bool(left) and (len(left[0].slices) == wanted.slices or not _is_whole(left[0]))

    def add(self, measured: Measured) -> None:
        """Write a measurement down."""
        with storage.explained(self._path), self._path.open("a") as file:
            file.write(json.dumps(asdict(measured)) + "\n")


def _is_whole(measured: Measured) -> bool:
    return not (measured.fault or measured.is_hopeless)
