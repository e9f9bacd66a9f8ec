"""Selects the layers of a graph to quantize to int8, none before the first or after the last.

A layer is a matrix product or a convolution with an activation that is its only consumer (ReLU,
the clip of ReLU6), or an operator between two layers, such as the sum of a residual connection.
Before the first and after the last are pre- and postprocessing (casts, crops and resizes of
pixels, a softmax): 8 bits would cost accuracy there and gain nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRODUCTS = ("MatMul", "Gemm", "Conv")
JOINED = ("Relu", "Clip")
"""Removed from the graph when their layer is quantized: its scale saturates where they clip."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Nodes that are quantized together or not at all.

    Attributes:
        name: The name of its first node.
        operator: The type of its first node.
        nodes: The names of all its nodes.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph's nodes of quantizable types.

    Attributes:
        layers: In order of execution.
        outside: The names of nodes before the first product and after the last.
    """

    layers: tuple[Layer, ...]
    outside: tuple[str, ...]

    def all_but(self, name: str) -> list[str]:
        """The names of the nodes of every layer except one."""
        return [node for layer in self.layers if layer.name != name for node in layer.nodes]


def plan(path: Path, types: Sequence[str]) -> Plan:
    """Divide a graph's nodes of these types into layers."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if _is_product(node, constants, types)]
    inner = _reached(graph.node, products) & _reached(reversed(graph.node), products, back=True)
    candidates = [node for node in graph.node if node.op_type in types]
    inside = [node for node in candidates if node.name in inner or node in products]
    names = {node.name for node in inside}
    outside = tuple(node.name for node in candidates if node.name not in names)
    return Plan(tuple(_layers(inside, graph)), outside)


def _is_product(node: Any, constants: set[str], types: Sequence[str]) -> bool:  # noqa: ANN401  onnx's messages
    """Whether a node multiplies by constant weights; products of activations stay float."""
    return node.op_type in PRODUCTS and node.op_type in types and node.input[1] in constants


def _reached(nodes: Any, starts: Sequence[Any], *, back: bool = False) -> set[str]:  # noqa: ANN401  the same
    """The names of all nodes reachable from one of `starts`, in the order of `nodes`."""
    first, tensors, found = {node.name for node in starts}, set[str](), set[str]()
    for node in nodes:
        entering, leaving = (node.output, node.input) if back else (node.input, node.output)
        behind = not tensors.isdisjoint(entering)
        if behind:
            found.add(node.name)
        if behind or node.name in first:
            tensors.update(leaving)
    return found


def _layers(inside: Sequence[Any], graph: Any) -> Iterator[Layer]:  # noqa: ANN401  the same
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for tensor in node.input:
            users.setdefault(tensor, []).append(node)
    known = {node.name for node in inside}
    joined: set[str] = set()
    for node in inside:
        if node.name in joined:
            continue
        nodes = [node]
        while _follows(users.get(nodes[-1].output[0], []), known):
            nodes.append(users[nodes[-1].output[0]][0])
        names = tuple(n.name for n in nodes)
        joined.update(names)
        yield Layer(node.name, node.op_type, names)


def _follows(users: Sequence[Any], known: set[str]) -> bool:
    """Whether the only consumer is an activation that is fused into the layer."""
    return len(users) == 1 and users[0].op_type in JOINED and users[0].name in known
