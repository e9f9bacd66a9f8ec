"""A summary of a run over many files, without holding all responses in memory."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from marship.predict.rows import Row, cells

SHOWN_ROWS = 10
COUNTED = ("verdict", "label")


@dataclass(slots=True)
class Outcome:
    """The summary of a run.

    Attributes:
        predicted: Number of files with a response.
        predicted_before: Number of those from an earlier run.
        seconds: Duration of the requests.
        first: The cells of the first responses, by file.
        counts: How often each verdict and each label occurred.
        failed: The rows of files without a response.
    """

    predicted_before: int
    seconds: float
    predicted: int = 0
    first: dict[str, Mapping[str, str]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[Row] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Number of files sent in this run."""
        return self.predicted + len(self.failed) - self.predicted_before

    def take(self, rows: Iterable[Row]) -> None:
        """Add rows, in the order in which they are shown."""
        for row in rows:
            if not row.has_response:
                self.failed.append(row)
                continue
            self.predicted += 1
            texts = cells(row.answer)
            if len(self.first) < SHOWN_ROWS:
                self.first[row.file] = texts
            for name in COUNTED:
                if name in texts:
                    self.counts.setdefault(name, Counter())[texts[name]] += 1
