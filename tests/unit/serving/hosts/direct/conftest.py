"""Places where workers answer directly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import Collector, collecting
from directly import Place, service


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extracted archive."""
    return tmp_path_factory.mktemp("direct") / "model"


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Any:
    """A model, loaded."""
    return service(folder)


@pytest.fixture
def place() -> Iterator[Place]:
    """An acceptor without workers."""
    made = Place()
    yield made
    made.close()


@pytest.fixture(scope="module")
def one(loaded: Any) -> Iterator[Place]:
    """A model `m` with one worker."""
    made = Place()
    made.add(loaded)
    made.follow(m=("1.0",))
    yield made
    made.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of spans."""
    with collecting() as made:
        yield made
