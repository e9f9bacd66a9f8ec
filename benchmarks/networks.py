"""The benchmark's models, with random weights: speed does not depend on their values."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import torch

IR_VERSION = 10
OPSET = 21
SEED = 0


class Graph:
    """An ONNX graph as it grows, with weights from one seed."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(SEED)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        """Append a node and return the name of its output."""
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        """Add random weights that keep a signal's size (He et al. 2015, equation 10)."""
        values = self._rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        return self.constant(values.astype(np.float32))

    def constant(self, values: np.ndarray) -> str:
        """Add a tensor."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def save(self, path: Path, row: tuple[int, ...], output: tuple[int, ...]) -> None:
        """Write the graph, from float32 `input` to float32 `output`, both (batch, ...)."""
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *row])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output])],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def write_mlp(path: Path) -> None:
    """A multilayer perceptron of 10, 10 and 1 units."""
    graph = Graph()
    first = graph.weight(10, 10, fan_in=10), graph.weight(10, fan_in=10)
    second = graph.weight(10, 1, fan_in=10), graph.weight(1, fan_in=10)
    hidden = graph.add("Relu", graph.add("Gemm", "input", *first))
    graph.add("Gemm", hidden, *second, output="output")
    graph.save(path, (10,), (1,))


def write_means(path: Path) -> None:
    """The mean of each channel of an image: next to no work, so that serving itself is measured."""
    graph = Graph()
    axes = graph.constant(np.array([2, 3], np.int64))
    graph.add("ReduceMean", "input", axes, output="output", keepdims=0)
    graph.save(path, (3, 224, 224), (3,))


def write_resnet18(path: Path) -> None:
    """ResNet-18 (He et al. 2016, table 1), batch norms folded into their convolutions."""
    graph = Graph()

    def conv(x: str, channels: tuple[int, int], size: int, stride: int) -> str:
        kept, made = channels
        weight = graph.weight(made, kept, size, size, fan_in=kept * size * size)
        bias = graph.weight(made, fan_in=made)
        pad = size // 2
        return graph.add("Conv", x, weight, bias, strides=[stride] * 2, pads=[pad] * 4)

    x = graph.add("Relu", conv("input", (3, 64), 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    kept = 64
    for made, first in (
        (64, 1),
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        (512, 1),
    ):
        inner = graph.add("Relu", conv(x, (kept, made), 3, first))
        inner = conv(inner, (made, made), 3, 1)
        x = x if kept == made else conv(x, (kept, made), 1, first)
        x, kept = graph.add("Relu", graph.add("Add", inner, x)), made
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    weights = graph.weight(512, 1000, fan_in=512), graph.weight(1000, fan_in=1000)
    graph.add("Gemm", x, *weights, output="output")
    graph.save(path, (3, 224, 224), (1000,))


def write_resnet18_int8(path: Path) -> None:
    """The same with int8 weights and activations, a scale for each channel (QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(SEED)
            shape = 4, 3, 224, 224
            self._left = [{"input": rng.standard_normal(shape).astype(np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    float32 = path.with_name("float32.onnx")
    write_resnet18(float32)
    quantize_static(
        float32,
        path,
        Noise(),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    float32.unlink()


def write_recommender(path: Path) -> None:
    """The recipe's model, untrained: items, ratings and times to a score for each item."""
    import sys

    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    import recommend

    torch.manual_seed(SEED)
    shape = 2, 50
    example = (
        torch.randint(1, 1000, shape),
        torch.rand(shape),
        torch.randint(874_724_710, 893_286_638, shape),
    )
    model = recommend.build(width=64, blocks=2, heads=2, dropout=0.0, ease=0.0)
    _export(model, example, ("items", "ratings", "times"), "scores", path)


def write_encoder(path: Path) -> None:
    """A text encoder of 6 layers and 384 wide, 22 million weights, mean over the tokens."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(30_522, 384), nn.Embedding(512, 384)
            layer = nn.TransformerEncoderLayer(
                384, 12, 1536, dropout=0.0, activation="gelu", batch_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            places = torch.arange(ids.shape[1], device=ids.device)
            return self.layers(self.embed(ids) + self.place(places)).mean(1)

    torch.manual_seed(SEED)
    _export(Encoder(), (torch.randint(0, 30_522, (2, 64)),), ("input",), "vector", path)


def _export(
    model: "torch.nn.Module", example: tuple, inputs: tuple[str, ...], output: str, path: Path
) -> None:
    """PyTorch to ONNX with a variable batch, in one file."""
    import torch

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model.eval(),
        example,
        dynamo=True,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple({0: batch} for _ in example),
        opset_version=OPSET,
        verbose=False,
        external_data=False,
    )
    program.save(path)
