"""How a run over many files ended, as far as it is shown: never all answers at once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from marship.predict.rows import Row, cells

SHOWN_ROWS = 10
COUNTED = ("verdict", "label")


@dataclass(slots=True)
class Outcome:
    """The end of a run.

    Attributes:
        answered: How many files have an answer.
        answered_before: How many of them had it from an earlier run.
        seconds: How long the requests took.
        first: The first answers' cells, by file.
        counts: How often each verdict and each label was answered.
        failed: The rows of files without an answer.
    """

    answered_before: int
    seconds: float
    answered: int = 0
    first: dict[str, Mapping[str, str]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[Row] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """How many files were asked about in this run."""
        return self.answered + len(self.failed) - self.answered_before

    def take(self, rows: Iterable[Row]) -> None:
        """Count rows, in the order in which they are to be shown."""
        for row in rows:
            if not row.is_answered:
                self.failed.append(row)
                continue
            self.answered += 1
            texts = cells(row.answer)
            if len(self.first) < SHOWN_ROWS:
                self.first[row.file] = texts
            for name in COUNTED:
                if name in texts:
                    self.counts.setdefault(name, Counter())[texts[name]] += 1
