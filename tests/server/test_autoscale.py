"""Workers that follow the load of a real server, and lose no request on the way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loads import load
from marship import Client, PackageSettings, package
from marship.engines.addresses import Target
from marship.engines.torchserve.server import Server
from marship.operate.autoscale import record
from marship.operate.autoscale.loop import Autoscaler
from marship.operate.autoscale.settings import ScalingSettings
from served import write_model
from waiting import until

HANDLER = Path(__file__).parent / "onnx_handlers" / "doze_handler.py"
SOON = ScalingSettings(window_s=5, cool_down_s=5)


@contextmanager
def autoscaling(home: Path) -> Iterator[None]:
    """Autoscaling of one model, as long as this is entered."""
    ended = threading.Event()
    scaler = Autoscaler(Target(home), ["dozes"], SOON)
    thread = threading.Thread(target=scaler.run, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
    assert not thread.is_alive()


def test_workers_follow_the_load(running: Server, store: Path, client: Client) -> None:
    """One worker becomes two under load, and, by another autoscaler, one under less: none is lost.

    What decided is told while it runs. The second autoscaler knows the bounds, though the server
    says two and two.
    """
    folder = store.parent / "dozes"
    folder.mkdir()
    settings = PackageSettings(
        name="dozes", model_store=store, handler=HANDLER, min_workers=1, max_workers=2
    )
    client.register(package(write_model(folder), settings).name)
    home, nap = running.home.path, {"input": [[0.05] + [0.0] * 9]}
    right = {"1.0": client.predict("dozes", nap)}

    def ready() -> int:
        return client.describe("dozes")[0].ready

    with load(home, "dozes", nap, right, threads=8) as busy, autoscaling(home):
        until(lambda: ready() == 2, 60, "a second worker", poll_s=0.2)
        (state,) = record.read(running.home)
        assert (state.name, state.least, state.most, state.wanted) == ("dozes", 1, 2, 2)
        assert state.reason
    assert record.read(running.home)  # of this process, which lives
    with load(home, "dozes", nap, right, threads=1, pause_s=0.2) as calm, autoscaling(home):
        until(lambda: ready() == 1, 60, "the end of one", poll_s=0.2)
    assert busy.all_correct(), busy
    assert calm.all_correct(), calm
    client.unregister("dozes")
