"""One cluster of Ray on this machine, and a model store, for the tests of a file.

Not of the session: an idle cluster takes a seventh of a core until it is stopped.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from marship import Client
from marship.engines.ray.head import Cluster, start
from marship.engines.ray.settings import RaySettings
from versions import write_versions


@pytest.fixture(scope="module")
def lin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with versions of `lin`: 1, 2, a wrong one, and a broken one."""
    store = tmp_path_factory.mktemp("store")
    write_versions(store, tmp_path_factory.mktemp("lin"))
    return store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, lin: Path) -> Iterator[Cluster]:
    """A cluster of one node."""
    home = tmp_path_factory.mktemp("ray")
    started = start(RaySettings(home=home, model_store=lin, free_ports=True, start_timeout_s=240))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster."""
    with Client(cluster.home.path) as one:
        yield one
