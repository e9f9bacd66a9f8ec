"""A model with operators of a native library, and one of two graphs, served by TorchServe."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime_extensions
from onnx import TensorProto, helper

from marship import Client
from marship.packaging.step import PackageSettings, package

DOMAIN = "ai.onnx.contrib"


def test_workers_load_the_library_of_custom_operators(
    client: Client, store: Path, tmp_path: Path
) -> None:
    """From the archive as it was unpacked, with nothing of it installed for them."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"])
        for name in ("text", "upper")
    ]
    node = helper.make_node("StringUpper", ["text"], ["upper"], domain=DOMAIN)
    graph = helper.make_graph([node], "loud", ends[:1], ends[1:])
    versions = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    path = tmp_path / "loud.onnx"
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=10), path)
    library = str(onnxruntime_extensions.get_library_path())
    settings = PackageSettings(model_store=store, custom_ops=(library,), profile="throughput")
    client.register(package(path, settings).name)
    words = np.array(["some", "words"], object)
    assert client.predict("loud", {"text": words}) == {"upper": ["SOME", "WORDS"]}
    client.unregister("loud")
