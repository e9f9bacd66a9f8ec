"""Which golden cases are sent to an endpoint: only a handler of tensors understands them."""

from pathlib import Path

import pytest

from marship import Client
from marship.errors import NotRunningError
from marship.operate.replay import replay
from marship.packaging.step import PackageSettings, package
from marship.trust import archive

pytestmark = pytest.mark.slow

HANDLERS = Path(__file__).parents[3] / "handlers"
BASE = "from marship.serving.handler import OnnxHandler\n\n\nclass Own(OnnxHandler):\n"


def reason(model: Path, handler: Path, store: Path) -> str:
    """Why nothing is replayed; a replay would need a server."""
    store.mkdir(exist_ok=True)
    built = package(model, PackageSettings(model_store=store, name="m", handler=handler))
    return replay(Client(store), archive.read(built), "m").reason


@pytest.mark.parametrize("name", ["recommend", "moderate"])
def test_other_requests_than_tensors_are_not_sent(
    linear_onnx: Path, tmp_path: Path, name: str
) -> None:
    """Handlers that read requests of their own."""
    handler = HANDLERS / f"{name}_handler.py"
    assert "other requests than tensors" in reason(linear_onnx, handler, tmp_path / "store")


@pytest.mark.parametrize(
    ("body", "is_asked"),
    [
        ("    def prepare(self):\n        self.k = 5\n", True),
        ("    def encode(self, outputs, state):\n        return outputs\n", False),
    ],
)
def test_the_handlers_source_says_what_it_takes(
    linear_onnx: Path, tmp_path: Path, body: str, is_asked: bool
) -> None:
    """A handler that only prepares is replayed, so a server is needed; one that encodes is not."""
    handler = tmp_path / "own_handler.py"
    handler.write_text(BASE + body)
    if is_asked:
        with pytest.raises(NotRunningError, match="a server must run"):
            reason(linear_onnx, handler, tmp_path / "store")
    else:
        assert "other requests" in reason(linear_onnx, handler, tmp_path / "store")
