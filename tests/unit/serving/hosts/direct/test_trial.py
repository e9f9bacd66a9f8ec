"""A new version on trial: requests split by share, pairs compared, clients that notice nothing."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from directly import Place, request, service, until
from marship.serving.hosts.direct.trial import (
    TrialFigures,
    TrialOrder,
)

ASK = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 10], "datatype": "FP32", "data": [0.1] * 10}]}
).encode()
ORDER = TrialOrder(
    owner="me", model="a", default="1", version="2", share=1.0, gives_new=True, absolute=1e-4
)


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[Place]:
    """Models `a` (versions 1 and 2, 1 is the default) and `b`, each version with a worker."""
    made = Place()
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        made.add(service(folder, name, version), name, version)
    made.follow(a=("1", "2"), b=("1",))
    yield made
    made.close()


def tell(place: Place, order: TrialOrder) -> dict[str, Any]:
    """What the acceptor says to an order, as a command sends it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10)
        line.connect(str(place.path))
        line.send(json.dumps({**asdict(order), "kind": "try"}).encode() + b"\n")
        told: dict[str, Any] = json.loads(line.recv(1 << 17))
        return told


def figures(place: Place, order: TrialOrder) -> TrialFigures:
    """What came of a trial."""
    return TrialFigures.from_json(tell(place, order)["figures"])


@contextmanager
def trial(place: Place, order: TrialOrder = ORDER) -> Iterator[TrialOrder]:
    """A trial that runs."""
    assert "figures" in tell(place, order)
    try:
        yield order
    finally:
        tell(place, replace(order, share=0.0))


def who(body: bytes) -> str:
    """Which model and version gave a response of KServe's."""
    told = json.loads(body)
    return f"{told['model_name']} {told['model_version']}"


def test_a_canary_gives_the_new_versions_response_to_its_share(models: Place) -> None:
    """On a connection that stays open before, while and after a trial runs."""
    with models.line() as line:

        def ask() -> str:
            line.send(request("/v2/models/a/infer", ASK))
            return who(line.read().body)

        assert ask() == "a 1"
        with trial(models) as order:
            assert [ask() for _ in range(5)] == ["a 2"] * 5
            until(lambda: figures(models, order).compared == 5)
            got = figures(models, order)
            assert (got.asked, got.taken, got.differing, got.dropped) == (5, 5, 0, 0)
            assert (got.default.requests, got.new.requests, got.new.errors) == (5, 5, 0)
            assert sum(got.new.took) == 5
        assert ask() == "a 1"


def test_a_shadow_gives_the_default_versions_response(models: Place) -> None:
    """To all; the new version gets the same requests."""
    with trial(models, replace(ORDER, gives_new=False)) as order:
        assert who(models.ask("/v2/models/a/infer", ASK).body) == "a 1"
        until(lambda: figures(models, order).compared == 1)
