"""Finds the values that a graph knows by name, and draws inputs of them: words and categories.

A vocabulary, an encoder of labels, a comparison with a text: all other values are one to the model,
"unknown". Inputs drawn without these values show nothing of what it does with them, and an encoder
may refuse all others.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from marship.contract import Array, Contract, TensorSpec
from marship.proof.columns import ALL, InputValues, Place, passed_on
from marship.proof.indices import dims, note_constant
from marship.proof.operators import inlined, subgraphs
from marship.proof.patterns import matching

Value = str | int
Constants = Mapping[str, TensorProto]

SHARE = 0.5
"""Of drawn values that are known ones, where the model takes others, too."""
MOST_JOINED = 5
"""Words of a drawn text."""
NUMBERS = ("1", "0.5", "-3", "12")
"""Texts that a Cast to numbers takes."""

_NAMING = {
    *("cats_int64s", "cats_strings", "int64_vocabulary", "keys_int64s", "keys_strings"),
    *("keys_tensor", "pool_int64s", "pool_strings", "separators", "stopwords", "string_vocabulary"),
}
"""Attributes with values that inputs are held against."""
_SAME_TEXT = {
    *("ArrayFeatureExtractor", "Gather", "LabelEncoder", "Slice", "Split", "StringConcat"),
    *("StringNormalizer", "StringSplit", "Tokenizer", "Where"),
}
"""Operators that may hand on texts, though changed or in other places."""
_PATTERNS = {"pattern", "tokenexp"}
"""Attributes with a pattern that texts match."""
_WHOLE = {TensorProto.INT32, TensorProto.INT64}
_HELD = {TensorProto.STRING, *_WHOLE, TensorProto.FLOAT, TensorProto.DOUBLE}


@dataclass(frozen=True, slots=True)
class Known:
    """Values that a graph knows of an input, or of a column.

    Attributes:
        place: The column; `ALL` for all values.
        values: Distinct ones, in the graph's order.
        only: Whether the model refuses all others.
    """

    place: Place
    values: tuple[Value, ...]
    only: bool


@dataclass(frozen=True, slots=True)
class WordedSpec(TensorSpec):
    """An input with the values that the graph knows of it; within the proof only."""

    known: tuple[Known, ...] = ()


def worded(contract: Contract, path: Path) -> Contract:
    """The contract whose inputs have the values that the file's graph knows of them."""
    graph = inlined(onnx.load(str(path), load_external_data=False)).graph
    found = {value.name: tuple(_known(graph, value)) for value in graph.input}

    def completed(spec: TensorSpec) -> TensorSpec:
        known = found.get(spec.name)
        return WordedSpec(**_fields(spec), known=known) if known else spec

    return replace(contract, inputs=tuple(map(completed, contract.inputs)))


def plain(contract: Contract) -> Contract:
    """The contract as it is stored."""
    return replace(contract, inputs=tuple(TensorSpec(**_fields(s)) for s in contract.inputs))


def _fields(spec: TensorSpec) -> dict[str, Any]:
    return {entry.name: getattr(spec, entry.name) for entry in fields(TensorSpec)}


def known_of(spec: TensorSpec) -> tuple[Known, ...]:
    """The values that the graph knows of an input; none where it was not asked."""
    return spec.known if isinstance(spec, WordedSpec) else ()


def with_known(
    spec: TensorSpec, values: Array, generator: np.random.Generator, share: float = SHARE
) -> Array:
    """The values, a share of them replaced by known ones; all where no others are taken.

    Half of the texts are several words, as a text that is split into words has them.
    """
    values = np.asarray(values)
    for known in known_of(spec):
        axis, column = known.place
        part = values if axis < 0 else np.moveaxis(values, axis, 0)[column, ...]
        drawn = np.array([_drawn(known, generator) for _ in range(part.size)], part.dtype)
        taken = generator.random(part.shape) < (1.0 if known.only else share)
        part[...] = np.where(taken, drawn.reshape(part.shape), part)
    return values


def full_of(spec: TensorSpec, values: Array, share: float) -> Array:
    """The values, with the known one at this share of each vocabulary, 0 to 1, at its places."""
    values = np.array(values)
    for known in known_of(spec):
        axis, column = known.place
        part = values if axis < 0 else np.moveaxis(values, axis, 0)[column, ...]
        part[...] = known.values[int(share * len(known.values))]
    return values


def _drawn(known: Known, generator: np.random.Generator) -> Value:
    several = isinstance(known.values[0], str) and not known.only and generator.integers(2)
    count = int(generator.integers(2, MOST_JOINED + 1)) if several else 1
    chosen = [known.values[i] for i in generator.integers(len(known.values), size=count)]
    return " ".join(map(str, chosen)) if several else chosen[0]


def _known(graph: GraphProto, value: onnx.ValueInfoProto) -> Iterator[Known]:
    """What the graph knows of an input's values, those of columns last."""
    if value.type.tensor_type.elem_type not in _HELD:
        return
    trace = _Trace(value.type.tensor_type.elem_type == TensorProto.STRING)
    trace.walk(graph, {value.name: InputValues((0, 0), tuple(dims(value)))}, {})
    places = sorted(trace.taken.keys() | trace.others.keys())
    for place in places:
        only = trace.taken.get(place)
        values = tuple(dict.fromkeys(only or trace.others[place]))
        if values:
            yield Known(place, values, bool(only))


@dataclass(slots=True)
class _Trace:
    """Traces an input's values to the operators that know some of them.

    Attributes:
        is_text: Whether the input holds texts.
        taken: By place, the only values that are taken.
        others: By place, values that are known beside others.
        moved: Tensors with values that may not be the input's own, at its places.
    """

    is_text: bool
    taken: dict[Place, list[Value]] = field(default_factory=dict)
    others: dict[Place, list[Value]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)

    def walk(self, graph: GraphProto, outer: Mapping[str, InputValues], above: Constants) -> None:
        """Note what the operators of a graph and of its subgraphs know."""
        held = dict(outer)
        constants = {**above, **{tensor.name: tensor for tensor in graph.initializer}}
        for node in graph.node:
            note_constant(node, constants)
            for name in node.input:
                if name in held:
                    self._note(node, name, held[name], constants)
            held |= self._passed_on(node, held, constants)
            for body in subgraphs(node):
                self.walk(body, held, constants)

    def _note(self, node: NodeProto, name: str, values: InputValues, constants: Constants) -> None:
        places = [(values.axis, place) for place in values.places] or [ALL]
        only = name not in self.moved and _refuses_others(node, is_text=self.is_text)
        found = list(_values(node, constants, is_text=self.is_text))
        for place in places:
            (self.taken if only else self.others).setdefault(place, []).extend(found)

    def _passed_on(
        self, node: NodeProto, held: Mapping[str, InputValues], constants: Constants
    ) -> dict[str, InputValues]:
        """Outputs that hold values of the input; those changed or in other places are `moved`."""
        own = [name for name in node.input if name in held]
        if not own:
            return {}
        found = passed_on(node, held, constants) or _extracted(node, held, constants)
        if not found and node.op_type in _SAME_TEXT:
            found = dict.fromkeys(node.output, replace(held[own[0]], sizes=()))
            self.moved.update(found)
        if self.moved.intersection(own):
            self.moved.update(found)
        return found


def _extracted(
    node: NodeProto, held: Mapping[str, InputValues], constants: Constants
) -> dict[str, InputValues]:
    """Columns along the last axis, by ArrayFeatureExtractor."""
    if node.op_type != "ArrayFeatureExtractor" or node.input[1] not in constants:
        return {}
    columns = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    found = held[node.input[0]].cut(-1, columns, keeps_axis=True)
    return {} if found is None else {node.output[0]: found}


def _refuses_others(node: NodeProto, *, is_text: bool) -> bool:
    """Whether a node fails on values that it does not know."""
    if node.op_type == "OneHotEncoder":
        return any(a.name == "zeros" and a.i == 0 for a in node.attribute)
    return node.op_type == "Cast" and is_text


def _values(node: NodeProto, constants: Constants, *, is_text: bool) -> Iterator[Value]:
    """The values that a node knows, of the kind that the input holds; not the empty text."""
    if node.op_type == "Cast" and is_text:
        yield from NUMBERS
    tensors = [constants[name] for name in node.input if name in constants]
    for attribute in node.attribute:
        given = helper.get_attribute_value(attribute)
        if attribute.name in _PATTERNS and is_text:
            yield from matching(given.decode())
        if attribute.name in _NAMING and isinstance(given, TensorProto):
            tensors.append(given)
        elif attribute.name in _NAMING:
            yield from (v for v in _plain(given) if isinstance(v, str) == is_text and v != "")
    for tensor in tensors:
        if is_text and tensor.data_type == TensorProto.STRING:
            yield from filter(None, map(str, _plain(tensor.string_data)))


def _plain(values: Iterable[bytes | int]) -> list[Value]:
    return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values]
