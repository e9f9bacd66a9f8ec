"""Faults and attacks, each in a short form; in full with `--full`, as `make torture` runs them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from figures import Figures


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run the long form."""
    return bool(request.config.getoption("--full"))


Amount = Callable[[float, float], float]


@pytest.fixture(scope="session")
def amount(full: bool) -> Amount:
    """The first of two numbers in the short form, the second in the long one."""
    return lambda short, long: long if full else short


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Counts of the cases; written as a table into the file that `--report` names."""
    kept = Figures()
    yield kept
    if (report := request.config.getoption("--report")) and not request.session.testsfailed:
        kept.write(Path(report))
