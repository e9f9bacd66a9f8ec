"""Which TorchServe's worker is made to use the buffered transport, and with what limits."""

from pathlib import Path

import ts

from marship.serving.hosts.torchserve import worker


def test_only_a_known_torchserve_is_touched(tmp_path: Path) -> None:
    """The installed 0.12.0 is known; another version or a changed file is not, and is named."""
    package = Path(ts.__file__).parent
    assert worker.unknown("0.12.0", package) is None
    assert "0.13.0" in (worker.unknown("0.13.0", package) or "")
    for name in worker.KNOWN_FILES:
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((package / name).read_bytes())
    assert worker.unknown("0.12.0", tmp_path) is None
    (tmp_path / "service.py").write_text("# changed")
    assert worker.unknown("0.12.0", tmp_path) == "service.py of TorchServe was changed"


def test_outside_of_a_worker_nothing_is_replaced() -> None:
    """Where no worker script runs, as here, install does nothing."""
    from ts.service import Service

    before = Service.predict
    assert worker.install(lambda *_: b"") is False
    assert Service.predict is before
