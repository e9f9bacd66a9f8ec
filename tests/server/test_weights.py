"""The workers of a model that TorchServe serves map one copy of its weights."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from marship import Client
from marship.packaging.step import PackageSettings, package
from marship.serving.model.weights import COPY_FOLDER
from models import write_model

WIDTH = 1100  # 1100 x 1100 x 4 bytes: over the smallest size that is shared


def test_workers_map_one_file(store: Path, client: Client, tmp_path: Path) -> None:
    """Scaled to two, both workers of an archive have the same file in their memory."""
    matrix = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "matrix")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("input", "output")
    ]
    node = helper.make_node("MatMul", ["input", "matrix"], ["output"])
    graph = helper.make_graph([node], "same", ends[:1], ends[1:], [matrix])
    model = write_model(tmp_path / "same.onnx", graph)
    settings = PackageSettings(model_store=store, name="same", max_workers=2)
    client.register(package(model, settings).name)
    status = client.scale("same", workers=2)
    maps = [Path(f"/proc/{worker.pid}/maps").read_text() for worker in status.workers]
    # the inode is the fifth field, proc(5)
    inodes = [
        {line.split()[4] for line in text.splitlines() if f"/{COPY_FOLDER}/" in line}
        for text in maps
    ]
    assert len(inodes) == 2
    assert len(inodes[0]) == 1
    assert inodes[0] == inodes[1]
    ones = [[1.0] * WIDTH]
    assert client.predict("same", {"input": ones}) == {"output": ones}
    client.unregister("same")
