"""The interface of a model whose requests and responses are tensors: all formats of `codec`."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from marship.contract import Arrays, Contract, TensorSpec
from marship.serving.formats import codec, kserve
from marship.serving.formats.encoding import dump
from marship.serving.message import JSON_TYPE
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import TENSORS, BodyForm, Interface, Schema

_MOST_EXAMPLE_VALUES = 1000
_NAME = "golden"
_BINARY = (
    f"KServe v2 with raw tensors: JSON, and then the bytes of the tensors; the header "
    f"{kserve.LENGTH_HEADER} has the length of the JSON"
)


def interface(contract: Contract, sample: Arrays, run: Callable[[Arrays], Arrays]) -> Interface:
    """The forms of requests and responses of tensors.

    Args:
        contract: The model's.
        sample: A golden row, which is the example unless it is large; empty without one.
        run: Calls the model.
    """
    inputs = sample if 0 < _size(sample) <= _MOST_EXAMPLE_VALUES else {}
    outputs = run(inputs) if inputs else {}
    if _size(outputs) > _MOST_EXAMPLE_VALUES:
        inputs = outputs = {}
    made = _Forms(contract, inputs, outputs)
    requests, responses = tuple(made.requests()), tuple(made.responses())
    return Interface(TENSORS, requests, responses, about=_about(contract))


def _size(arrays: Arrays) -> int:
    return sum(array.size for array in arrays.values())


def _about(contract: Contract) -> str:
    lines = [f"- input {schemas.about(spec, contract)}: `{spec.name}`" for spec in contract.inputs]
    lines += [
        f"- output {schemas.about(spec, contract)}: `{spec.name}`" for spec in contract.outputs
    ]
    if any(spec.dtype.startswith(("int", "uint")) for spec in contract.inputs):
        # JSON Schema 2020-12 Validation, 6.1.1: any number whose fraction is zero is an integer
        lines += ["", "Integers are written without a fraction: 3, not 3.0."]
    return "\n".join([*lines, "", "An axis of one name has one size within a request."])


class _Forms:
    """The forms of one model."""

    def __init__(self, contract: Contract, inputs: Arrays, outputs: Arrays) -> None:
        self._contract = contract
        self._inputs, self._outputs = (
            {name: orjson.loads(dump(array, 1 << 20)) for name, array in arrays.items()}
            for arrays in (inputs, outputs)
        )
        self._shapes = {name: list(array.shape) for name, array in (inputs | outputs).items()}
        self._is_single = len(contract.inputs) == 1
        self._has_rows = contract.batch_axis is not None
        names = {spec.name for spec in contract.inputs}
        self._has_instances = self._has_rows and "instances" not in names

    def requests(self) -> list[BodyForm]:
        """In the order of `codec`."""
        contract, first = (
            self._contract,
            self._contract.inputs[0] if self._contract.inputs else None,
        )
        named = {spec.name: schemas.given(spec, contract) for spec in contract.inputs}
        found = [
            self._form(
                "inputs by name",
                {**schemas.record(**named), "additionalProperties": False},
                self._inputs,
            )
        ]
        if self._is_single and first is not None:
            found.append(
                self._form(
                    "the input", schemas.given(first, contract), self._inputs.get(first.name)
                )
            )
        if self._has_instances:
            example = self._instances(self._inputs, "instances")
            found.append(self._form("KServe v1", self._instances_request(), example))
        found.append(
            self._form("KServe v2", self._infer_request(), self._infer(self._inputs, "inputs"))
        )
        if self._is_single:
            found.append(BodyForm(codec.NPY_TYPE, schemas.BINARY, "the input in NumPy's format"))
        return [*found, BodyForm(codec.OCTETS_TYPE, schemas.BINARY, _BINARY)]

    def _instances_request(self) -> dict[str, Any]:
        """Rows of the only input, or objects with a row of each; never both."""
        contract, least = self._contract, self._contract.least_rows
        rows = {spec.name: schemas.row_of(spec, contract) for spec in contract.inputs}
        objects = {**schemas.record(**rows), "additionalProperties": False}
        lists = [schemas.array(row, least) for row in rows.values()] * self._is_single
        body = schemas.record(
            {"signature_name": {}}, instances={"anyOf": [*lists, schemas.array(objects, least)]}
        )
        return {**body, "additionalProperties": False}

    def responses(self) -> list[BodyForm]:
        """As the request was."""
        contract, outputs = self._contract, self._contract.outputs
        named = {spec.name: schemas.returned(spec, contract) for spec in outputs}
        labelled = {spec.name: _labelled(self._outputs.get(spec.name), spec) for spec in outputs}
        found = [
            self._form(
                "outputs by name", schemas.record(**named), labelled if self._outputs else None
            )
        ]
        if self._is_single and len(outputs) == 1:
            only = outputs[0]
            found.append(self._form("the output", named[only.name], labelled[only.name]))
        if self._has_instances:
            rows = {spec.name: schemas.returned_row(spec) for spec in outputs}
            row = rows[outputs[0].name] if len(outputs) == 1 else schemas.record(**rows)
            body = schemas.record(predictions=schemas.array(row))
            found.append(
                self._form("KServe v1", body, self._instances(self._outputs, "predictions"))
            )
        example = self._infer(self._outputs, "outputs")
        found.append(self._form("KServe v2", self._infer_response(), example))
        if len(outputs) == 1:
            found.append(BodyForm(codec.NPY_TYPE, schemas.BINARY, "the output in NumPy's format"))
        return [*found, BodyForm(codec.OCTETS_TYPE, schemas.BINARY, _BINARY)]

    def _form(self, title: str, schema: Schema, example: object) -> BodyForm:
        examples = {f"{_NAME}: {title}": example} if example else {}
        return BodyForm(JSON_TYPE, schema, title, examples)

    def _instances(self, values: Mapping[str, Any], key: str) -> dict[str, Any] | None:
        if not values:
            return None
        if len(values) == 1:
            return {key: next(iter(values.values()))}
        rows = zip(*values.values(), strict=True)
        return {key: [dict(zip(values, row, strict=True)) for row in rows]}

    def _infer(self, values: Mapping[str, Any], key: str) -> dict[str, Any] | None:
        specs = {spec.name: spec for spec in (*self._contract.inputs, *self._contract.outputs)}
        entries = [
            {
                "name": name,
                "shape": self._shapes[name],
                "datatype": kserve.datatype(specs[name]),
                "data": _flat(value),
            }
            for name, value in values.items()
        ]
        model = {} if key == "inputs" else {"model_name": "MODEL", "model_version": "VERSION"}
        return {**model, key: entries} if entries else None

    def _infer_request(self) -> dict[str, Any]:
        contract = self._contract
        entries = [
            _entry(spec, schemas.any_value(spec), _shape(spec, contract), has_data=True)
            for spec in contract.inputs
        ]
        names = [spec.name for spec in contract.outputs]
        raw = {"parameters": {"description": "With binary_data, true for a raw tensor."}}
        output = schemas.record(raw, name={"enum": names})
        most = 1 if len(names) == 1 else None
        nothing = {"type": "null"}
        optional: dict[str, Schema] = {
            "id": {"anyOf": [schemas.TEXT, schemas.NUMBER, nothing]},
            "outputs": {"anyOf": [schemas.array(output, 0, most), nothing]},
            "parameters": {"description": "With binary_data_output, true for raw outputs."},
        }
        return schemas.record(optional, inputs=_entries(entries))

    def _infer_response(self) -> dict[str, Any]:
        entries = [
            _entry(spec, schemas.returned_value(spec), schemas.array({"type": "integer"}))
            for spec in self._contract.outputs
        ]
        return schemas.record(
            {"id": schemas.TEXT},
            model_name=schemas.TEXT,
            model_version=schemas.TEXT,
            outputs=schemas.array(entries[0] if len(entries) == 1 else {"anyOf": entries}),
        )


def _entries(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A list with one entry for each tensor, in any order."""
    if not entries:
        return schemas.array({}, 0, 0)
    items = entries[0] if len(entries) == 1 else {"anyOf": entries}
    has_all = [{"contains": each} for each in entries] if len(entries) > 1 else []
    return {
        **schemas.array(items, len(entries), len(entries)),
        **({"allOf": has_all} if has_all else {}),
    }


def _entry(
    spec: TensorSpec, value: Schema, shape: Schema, *, has_data: bool = False
) -> dict[str, Any]:
    data = {"data": schemas.array(value)}
    about = "With binary_data_size, the bytes of a raw tensor."
    optional: dict[str, Schema] = {"parameters": {"description": about}}
    return schemas.record(
        optional if has_data else {**optional, **data},
        name={"const": spec.name},
        shape=shape,
        datatype={"const": kserve.datatype(spec)},
        **(data if has_data else {}),
    )


def _shape(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    """The shape of an input in KServe v2."""
    sizes = [
        {"const": size} if isinstance(size, int) else _size_schema(size, contract)
        for size in spec.shape
    ]
    rank = {"type": "array", "minItems": len(sizes), "maxItems": len(sizes)}
    return {**rank, "prefixItems": sizes} if sizes else rank


def _size_schema(axis: str, contract: Contract) -> dict[str, Any]:
    low, high = contract.bounds.get(axis, (1, None))
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def _labelled(value: Any, spec: TensorSpec) -> Any:  # noqa: ANN401  any JSON value
    """The values of an output by their classes' names, as named and bare JSON have them."""
    if not spec.labels or value is None:
        return value
    rows = value if len(spec.shape) > 1 else [value]
    named = [dict(zip(spec.labels, row, strict=True)) for row in rows]
    return named if len(spec.shape) > 1 else named[0]


def _flat(value: Any) -> list[Any]:  # noqa: ANN401  any JSON value
    if not isinstance(value, list):
        return [value]
    return [one for part in value for one in _flat(part)]
