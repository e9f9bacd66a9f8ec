"""Outcomes as JSON lines: an interrupted run resumes."""

import json
from dataclasses import asdict
from pathlib import Path

from collection.trial import Outcome


def read(path: Path) -> dict[tuple[str, str], Outcome]:
    """The outcomes of an earlier run that was interrupted."""
    lines = path.read_text().splitlines() if path.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    return {(outcome.kind, outcome.name): outcome for outcome in outcomes}


def add(path: Path, outcome: Outcome) -> None:
    """Append an outcome."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")
