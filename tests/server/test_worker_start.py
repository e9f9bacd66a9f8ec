"""A worker imports PyTorch only if its handler does."""

import io
import json
import os
import subprocess
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import ts

import marship
from marship import Client
from marship.engines.torchserve import server
from marship.packaging.step import PackageSettings, package
from posting import Post, posting

SCRIPTED = """
import json
import torch
from ts.torch_handler.base_handler import BaseHandler


class Scripted(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(bytes(row["body"])) for row in data])
"""


@contextmanager
def registered(running: server.Server, client: Client, name: str) -> Iterator[tuple[Post, int]]:
    """What posts to the model, and its only worker's process."""
    for post in posting(running, client, name):
        (worker,) = client.describe(name)[0].workers
        yield post, worker.pid
    client.unregister(name)


def has_torch(pid: int) -> bool:
    """Whether a process has PyTorch's libraries mapped."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_of_an_onnx_archive_never_imports_torch(
    running: server.Server, client: Client, store: Path, linear_onnx: Path
) -> None:
    """Neither when the model is loaded nor for a request."""
    package(linear_onnx, PackageSettings(model_store=store, name="light"))
    with registered(running, client, "light") as (post, pid):
        response = post('{"input": [[1, 2, 3]]}', "application/json")
        assert response.json() == {"output": [[16.0, 22.0]]}
        assert not has_torch(pid)


def test_a_handler_without_torch_can_return_each_type(
    running: server.Server, client: Client
) -> None:
    """TorchServe looks for tensors in results that are neither str nor bytes."""
    with registered(running, client, "plain") as (post, pid):
        response = post('{"a": [1, null]}', "application/json")
        assert response.json() == {"a": [1, None]}
        assert not has_torch(pid)


def test_a_handler_may_import_torch_at_any_time(running: server.Server, client: Client) -> None:
    """It has PyTorch's real modules, and TorchServe saves the tensor that it returns."""
    with registered(running, client, "tensors") as (post, pid):
        assert not has_torch(pid)
        response = post("[-1.5, 2.5]", "application/json")
        assert torch.load(io.BytesIO(response.content), weights_only=True).tolist() == [0, 2.5]
        assert has_torch(pid)


def test_an_archive_of_torchserves_own_handler_works(
    running: server.Server, client: Client, store: Path
) -> None:
    """One that torch-model-archiver made of a TorchScript model and a BaseHandler."""
    weights = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Hardtanh()), weights)
    model = {"modelName": "scripted", "modelVersion": "1.0", "handler": "scripted.py"}
    model["serializedFile"] = "model.pt"
    with zipfile.ZipFile(store / "scripted.mar", "w") as archive:
        archive.writestr("scripted.py", SCRIPTED)
        archive.writestr("model.pt", weights.getvalue())
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
    with registered(running, client, "scripted") as (post, pid):
        assert post("[-3, 0.5]", "application/json").json() == [-1, 0.5]
        assert has_torch(pid)


def test_a_marship_of_pip_target_serves(tmp_path: Path, linear_onnx: Path) -> None:
    """A Python without packages, and PYTHONPATH alone leads to marship and all that it needs."""
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    folders = [Path(marship.__file__).parents[1], Path(ts.__file__).parents[1]]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PATH": os.environ["PATH"]}
    home, store = tmp_path / "home", tmp_path / "store"
    package(linear_onnx, PackageSettings(model_store=store, name="aimed"))

    def run(*words: str) -> str:
        given = [python, "-m", "marship", *words, "--home", home]
        done = subprocess.run(given, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("serve", "--detach", "--free-ports", "--model-store", str(store))
    try:
        run("register", "aimed")
        request = '{"input": [[1, 2, 3]]}'
        assert json.loads(run("predict", "aimed", "--json", request)) == {"output": [[16, 22]]}
    finally:
        run("stop")
