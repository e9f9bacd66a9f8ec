"""Handlers as they stood before marship's modules moved: a copy of one's own goes on working."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from marship.operate.check import check
from marship.packaging.step import PackageSettings, package
from marship.serving.earlier import MOVED
from marship.serving.handler import OnnxHandler
from versions import linear

HANDLERS = sorted((Path(__file__).parents[1] / "earlier" / "handlers").glob("*.py"))


@pytest.mark.parametrize("path", HANDLERS, ids=lambda path: path.stem)
def test_a_handler_of_an_earlier_version_is_imported(path: Path) -> None:
    """All that it imports is there, and it defines one handler."""
    spec = importlib.util.spec_from_file_location(f"earlier_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    assert [k for k in kinds if k.__module__ == spec.name and issubclass(k, OnnxHandler)]


def test_names_of_earlier_modules_are_those_of_today() -> None:
    """Both ways to import them give the same classes, in a process of its own."""
    code = "\n".join(
        f"import marship.serving.{old}; from marship.serving import {old}; "
        f"import marship.serving.{new} as now\n"
        f"for name in vars(now):\n"
        f"    assert name.startswith('__') or getattr({old}, name) is getattr(now, name), name"
        for old, new in MOVED.items()
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_handler_that_uses_them_is_packed_and_loaded(tmp_path: Path) -> None:
    """With imports as earlier documentation showed them, and the same four methods."""
    handler = tmp_path / "own_handler.py"
    handler.write_text(
        "from marship.serving import codec\n"
        "from marship.serving.codec import Form\n"
        "from marship.serving.batch import Parts\n"
        "from marship.serving.handler import OnnxHandler, Reply, Request\n"
        "from marship.serving.transport import JSON_TYPE\n\n\n"
        "class Own(OnnxHandler):\n"
        "    def prepare(self):\n        self.seen = self.config['responseTimeout'], Form.BARE\n"
        "    def decode(self, request):\n        return super().decode(request)\n"
        "    def encode(self, outputs, state):\n"
        "        reply = super().encode(outputs, state)\n"
        "        return Reply(reply.body + b'\\n', JSON_TYPE)\n"
        "    def advice(self):\n        return 'a row'\n"
    )
    model = linear(tmp_path / "lin.onnx", 1)
    mar = package(model, PackageSettings(model_store=tmp_path, handler=handler))
    request = tmp_path / "request.json"
    request.write_text("[[1, 2, 3]]")
    done = check(mar, request)
    assert done.response is not None
    assert done.response.body == "[[16.0,22.0]]\n"
