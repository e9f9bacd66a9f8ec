"""ONNX's own tests of backends: nodes, small graphs, PyTorch's, and light versions of networks."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from collection import reference
from collection.sample import Case, Given, Sample
from onnx import numpy_helper

KINDS = {
    "ONNX node tests": "node",
    "ONNX simple tests": "simple",
    "ONNX tests from PyTorch": "pytorch-converted",
    "ONNX tests of PyTorch operators": "pytorch-operator",
    "ONNX light networks": "real",
}
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
_READERS = {
    "tensor_type": (onnx.TensorProto, numpy_helper.to_array),
    "sequence_type": (onnx.SequenceProto, numpy_helper.to_list),
    "optional_type": (onnx.OptionalProto, numpy_helper.to_optional),
    "map_type": (onnx.MapProto, numpy_helper.to_dict),
}


def samples(kind: str) -> list[Sample]:
    """All tests of one of KINDS."""
    from onnx.backend.test.loader import load_model_tests

    tests = load_model_tests(kind=KINDS[kind])
    return [
        Sample(kind, test.name.removeprefix("test_"), partial(_give, test))
        for test in sorted(tests, key=lambda test: test.name)
    ]


def _give(test: Any, folder: Path) -> Given:  # noqa: ANN401  onnx's TestCase
    if test.model is not None:
        path = folder / "model.onnx"
        path.write_bytes(test.model.SerializeToString())
        sets = [inputs for inputs, _ in test.data_sets]
    elif test.model_dir is not None:
        path = Path(test.model_dir) / "model.onnx"
        sets = [_stored(path, where) for where in sorted(path.parent.glob("test_data_set_*"))]
    else:
        path = DATA / "light" / Path(test.url).name
        sets = [_light(path)]
    names = [value.name for value in _inputs(path)]
    return Given(
        str(path),
        [_case(path, names, values) for values in sets],
        rtol=test.rtol,
        atol=test.atol,
    )


def _case(path: Path, names: Sequence[str], values: Sequence[Any]) -> Case:
    inputs: Mapping[str, Any] = {
        name: _array(value) for name, value in zip(names, values, strict=False)
    }
    served = {name: reference.widened(value) for name, value in inputs.items()}
    return Case(served, reference.outputs(path, inputs))


def _array(value: Any) -> Any:  # noqa: ANN401  an array, or another value of ONNX
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _stored(path: Path, folder: Path) -> list[Any]:
    """The inputs of a test that lies in files."""
    values = []
    for place, value in enumerate(_inputs(path)):
        file = folder / f"input_{place}.pb"
        if not file.exists():
            break
        kind, read = _READERS[value.type.WhichOneof("value")]
        message = kind()
        message.ParseFromString(file.read_bytes())
        values.append(read(message))
    return values


def _light(path: Path) -> list[Any]:
    """Inputs as onnx's own runner makes them: an even slope from 0 to 1."""
    made = []
    for value in _inputs(path):
        shape = [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        made.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    return made


def _inputs(path: Path) -> list[onnx.ValueInfoProto]:
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]
