"""Counts of a run's cases, as a table within a page."""

import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from loads import Tally

BEGIN, END = "<!-- figures: `make torture` writes them -->", "<!-- end of figures -->"
HEAD = "| case | sent | correct | error | wrong | lost | slowest | notes |"


@dataclass
class Figures:
    """Rows of a table, in the order in which they came."""

    started: float = field(default_factory=time.monotonic)
    rows: list[str] = field(default_factory=list)

    def add(self, case: str, tally: Tally, notes: str = "") -> None:
        """Add a row: the outcomes of a case's requests, and notes."""
        counts = (tally.correct, tally.failed, tally.wrong, tally.lost)
        numbers = [tally.sent, *(count.total() for count in counts)]
        cells = [case, *(f"{n:,}" for n in numbers), f"{tally.slowest_s:.1f} s", notes]
        self.rows.append(f"| {' | '.join(cells)} |")

    def write(self, page: Path) -> None:
        """Replace the page's table."""
        before, _, rest = page.read_text().partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            raise ValueError(f"{page} must hold the lines {BEGIN!r} and {END!r}")
        minutes = (time.monotonic() - self.started) / 60
        run = (
            f"Run on {datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, Linux {platform.release().split('-')[0]}."
        )
        line = "|---" + "|---:" * 6 + "|---|"
        table = "\n".join([run, "", HEAD, line, *self.rows])
        page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
