"""What a model is asked by: the methods of a typed client, for each kind of model."""

from collections.abc import Mapping, Sequence
from typing import Any

from marship.client.typed.classes import Classes, docstring, unlike
from marship.errors import UsageError

JSON_TYPE, LINES_TYPE = "application/json", "application/jsonl"
_DTYPES = {
    "bool": "np.bool_",
    "str": "np.object_",
    **{f"float{bits}": f"np.float{bits}" for bits in (16, 32, 64)},
    **{f"{kind}{bits}": f"np.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_FILES = {
    "picture": ("picture", "bytes | npt.NDArray[np.uint8]", "picture_bytes(picture)", ""),
    "recording": (
        "recording",
        "bytes | npt.NDArray[np.floating[Any]]",
        "recording_bytes(recording, rate)",
        ", rate: int = 16_000",
    ),
}
"""By kind: what is given, its type, the body made of it, and a further parameter."""


def methods(model: Mapping[str, Any], document: Mapping[str, Any], classes: Classes) -> str:
    """The methods of the client's class, indented; adds the classes that they need.

    Args:
        model: Of `x-marship-models`.
        document: The OpenAPI document.
        classes: Of the package.

    Raises:
        UsageError: The model takes encrypted requests.
    """
    shared = document["components"]
    body = shared["requestBodies"][_last(model["body"])]["content"]
    response = shared["responses"][_last(model["response"])]["content"]
    kind = model["kind"]
    if kind == "encrypted":
        raise UsageError(
            f"{model['name']} must take open requests, got a model that takes encrypted ones. Ask "
            "it with marship.private."
        )
    if kind == "tensors":
        return _of_tensors(model, classes)
    answer = _first(response)
    if kind in _FILES:
        return _of_files(kind, _parameters(document, model), answer, response, classes)
    request = _first(body)
    if request.get("type") == "object" and request.get("properties"):
        return _of_fields(request, answer, classes)
    return _RAW


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]


def _first(content: Mapping[str, Any]) -> dict[str, Any]:
    """The first form in JSON."""
    schema = content.get(JSON_TYPE, {}).get("schema", {})
    return dict(
        schema["anyOf"][0] if "anyOf" in schema and "title" in schema["anyOf"][0] else schema
    )


def _parameters(document: Mapping[str, Any], model: Mapping[str, Any]) -> list[dict[str, Any]]:
    operations = (
        operation
        for path, item in document["paths"].items()
        if path.startswith("/predictions/")
        for operation in item.values()
        if operation["requestBody"]["$ref"] == model["body"]
    )
    return [one for one in next(operations).get("parameters", ()) if one["in"] == "query"]


def _of_tensors(model: Mapping[str, Any], classes: Classes) -> str:
    sides = {"Inputs": model["inputs"], "Outputs": model["outputs"]}
    fields = {
        side: list(unlike(spec["name"] for spec in specs).values()) for side, specs in sides.items()
    }
    for side, specs in sides.items():
        lines = [f"@dataclass(frozen=True, slots=True)\nclass {side}:"]
        lines.append(f'    """The model\'s {side.lower()}; an axis of one name has one size."""\n')
        for spec, own in zip(specs, fields[side], strict=True):
            labels = f"; the last axis is of {', '.join(spec['labels'])}" if spec["labels"] else ""
            lines.append(f"    {own}: npt.NDArray[{_dtype(spec['dtype'])}]")
            lines.append(f"    {docstring(_form(spec) + labels)}")
        classes.sources[side] = "\n".join(lines if specs else [*lines, "    pass"])
    given = ", ".join(
        f"{spec['name']!r}: inputs.{own}"
        for spec, own in zip(model["inputs"], fields["Inputs"], strict=True)
    )
    types = {spec["name"]: spec["datatype"] for spec in model["inputs"]}
    names = [spec["name"] for spec in model["outputs"]]
    returned = ", ".join(
        f"{own}=found[{spec['name']!r}]"
        for spec, own in zip(model["outputs"], fields["Outputs"], strict=True)
    )
    return f'''    def predict(self, inputs: Inputs) -> Outputs:
        """The model's outputs for inputs.

        Raises:
            ServiceError: The server refuses them, or cannot answer.
            TypeError: An input would lose values where it is converted to the model's type, or the
                model has other outputs than when this was written.
        """
        found = self.infer(PATH, {{{given}}}, {types!r}, {names!r})
        return Outputs({returned})
'''


def _dtype(name: str) -> str:
    if name not in _DTYPES:  # it would become code
        raise UsageError(f"a tensor must be of a type that NumPy has, got {name!r:.60}.")
    return _DTYPES[name]


def _form(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']}[{', '.join(map(str, spec['shape']))}]"


def _of_files(
    kind: str,
    parameters: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any],
    response: Mapping[str, Any],
    classes: Classes,
) -> str:
    name, annotation, body, more = _FILES[kind]
    returns = classes.annotation(answer, "Prediction")
    kinds = {one["name"]: classes.annotation(one["schema"], "Given") for one in parameters}
    options = unlike(kinds, {*classes.sources, name, "rate"})
    required = {one["name"] for one in parameters if one.get("required")}
    flags = "".join(
        f", {own}: {kinds[sent]}" + ("" if sent in required else " | None = None")
        for sent, own in options.items()
    )
    query = ", ".join(f"{sent!r}: {own}" for sent, own in options.items())
    star = ", *" if more or flags else ""
    whole = f'''    def predict(self, {name}: {annotation}{star}{more}{flags}) -> {returns}:
        """What the model says of a {name}: a file's bytes, or an array.

        Raises:
            ServiceError: The server refuses it, or cannot answer.
        """
        _value = self.ask(PATH, {body}, OCTETS_TYPE, {{{query}}})
        _found: {returns} = decode({returns}, _value)
        return _found
'''
    if LINES_TYPE not in response:
        return whole
    segment = classes.annotation(response[LINES_TYPE]["schema"]["anyOf"][0], "Segment")
    return (
        whole
        + f'''
    def segments(self, {name}: {annotation}{star}{more}) -> Iterator[{segment}]:
        """The segments of a {name}, each as soon as it is ready.

        Raises:
            ServiceError: The server refuses it, or cannot go on.
        """
        for value in self.lines(PATH, {body}):
            if "start" in value:
                found: {segment} = decode({segment}, value)
                yield found
'''
    )


def _of_fields(request: Mapping[str, Any], answer: Mapping[str, Any], classes: Classes) -> str:
    required = set(request.get("required", ()))
    names = sorted(request["properties"], key=lambda name: name not in required)
    returns = classes.annotation(answer, "Prediction")
    kinds = {
        name: _given(classes.annotation(request["properties"][name], "Given")) for name in names
    }
    own = unlike(names, classes.sources)
    flags = [
        f"{own[name]}: {kinds[name]}" + ("" if name in required else " | None = None")
        for name in names
    ]
    star = [len([name for name in names if name in required])] if len(names) > len(required) else []
    for place in star:
        flags.insert(place, "*")
    sent = ", ".join(f"{name!r}: {own[name]}" for name in names)
    return f'''    def predict(self, {", ".join(flags)}) -> {returns}:
        """What the model says.

        Raises:
            ServiceError: The server refuses the request, or cannot answer.
        """
        _value = self.ask_json(PATH, {{{sent}}})
        _found: {returns} = decode({returns}, _value)
        return _found
'''


def _given(annotation: str) -> str:
    """The annotation of a parameter: lists and arrays alike."""
    if annotation == "npt.NDArray[np.float64]":
        return "Sequence[float] | npt.NDArray[np.floating[Any]]"
    if annotation == "list[int]":
        return "Sequence[int] | npt.NDArray[np.integer[Any]]"
    return annotation


_RAW = '''    def predict(self, body: bytes, content_type: str = OCTETS_TYPE) -> bytes:
        """The response to a body: the model's handler does not declare what it takes.

        Raises:
            ServiceError: The server refuses it, or cannot answer.
        """
        return self.post(PATH, body, {"Content-Type": content_type}, {})[0]
'''
