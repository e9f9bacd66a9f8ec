"""A key that is trusted, and the folder that trusts it."""

from pathlib import Path

import pytest

from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust
from signed import make_key, trusting


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    """A key that is trusted."""
    return make_key(tmp_path)


@pytest.fixture
def trust(tmp_path: Path, key: PrivateKey) -> Trust:
    """The folder that trusts it."""
    return trusting(tmp_path / "trust", key)
