"""Checks what handlers declare: one invalid schema would make the document of all models invalid.

Sources: OpenAPI 3.1.0, 4.8.12 (parameters) and 4.8.24 (schemas); JSON Schema 2020-12, Core 10 and
Validation 6.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from marship.errors import UsageError
from marship.serving.openapi.interface import KINDS

_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_SCHEMA = {
    *("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
}
_SCHEMAS = {"anyOf", "allOf", "oneOf", "prefixItems"}
_NAMED_SCHEMAS = {"properties", "patternProperties", "dependentSchemas", "$defs"}
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+*-]+(;.*)?", re.ASCII)
_STATUS = re.compile("[45][0-9][0-9]")


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _are_texts(value: Any) -> bool:  # noqa: ANN401  any JSON value
    return _is_list(value) and all(isinstance(one, str) for one in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:  # noqa: ANN401  any JSON value
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_type(value: Any) -> bool:  # noqa: ANN401  any JSON value
    names = value if _is_list(value) else [value]
    return _are_texts(names) and 0 < len(set(names)) == len(names) and set(names) <= _TYPES


_RULES: Mapping[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "required": _are_texts,
    # to where? a schema stands in a document with others' schemas
    **dict.fromkeys(("$ref", "$dynamicRef"), lambda _: False),
    **dict.fromkeys(_SCHEMAS, lambda value: _is_list(value) and len(value) > 0),
    **dict.fromkeys(_NAMED_SCHEMAS, lambda value: isinstance(value, Mapping)),
    **dict.fromkeys(("enum", "examples"), _is_list),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"),
                    lambda value: isinstance(value, bool)),
    **dict.fromkeys(("title", "description", "format", "pattern", "contentMediaType"),
                    lambda value: isinstance(value, str)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    **{f"{end}{what}": _is_count for end in ("min", "max")
       for what in ("Items", "Length", "Properties", "Contains")},
}  # fmt: skip
"""What the value of a keyword must be; keywords that JSON Schema lacks may have any."""


def check(facts: Mapping[str, Any]) -> None:
    """Check an interface, as its `facts` are in JSON.

    Raises:
        UsageError: It has no valid place in an OpenAPI document; says where.

    Example:
        >>> from marship.serving.openapi.interface import opaque
        >>> check(opaque(None).facts())
    """
    _require(facts["kind"] in KINDS, "kind", f"be one of {', '.join(KINDS)}", facts["kind"])
    for side in ("requests", "responses"):
        for place, form in enumerate(facts[side]):
            _check_form(form, f"{side}[{place}]")
    known: set[str] = set()
    for place, one in enumerate(facts.get("parameters", ())):
        _check_parameter(one, f"parameters[{place}]", known)
    for status, codes in facts.get("codes", {}).items():
        is_right = _STATUS.fullmatch(status) and _are_texts(codes)
        _require(bool(is_right), "codes", "have a list of codes by status", {status: codes})


def _check_form(form: Mapping[str, Any], where: str) -> None:
    content_type = form["content_type"]
    is_type = isinstance(content_type, str) and bool(_MEDIA_TYPE.fullmatch(content_type))
    _require(is_type, f"{where}.content_type", "be a media type", content_type)
    _check_schema(form["schema"], f"{where}.schema")


def _check_parameter(one: object, where: str, known: set[str]) -> None:
    rule = "be a Parameter Object in the query, of a name of its own"
    is_right = isinstance(one, Mapping) and one.get("in") == "query"
    name = one.get("name") if is_right and isinstance(one, Mapping) else None
    _require(isinstance(name, str) and name not in known, where, rule, one)
    known.add(str(name))
    _check_schema(one["schema"] if isinstance(one, Mapping) else one, f"{where}.schema")


def _check_schema(schema: object, where: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _fault(where, "be a JSON Schema", schema)
    for keyword, value in schema.items():
        is_right = keyword not in _RULES or _RULES[keyword](value)
        _require(is_right, f"{where}.{keyword}", "be as in JSON Schema", value)
    for name, inner in _inner(schema):
        _check_schema(inner, f"{where}.{name}")


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _SCHEMA:
            yield keyword, value
        elif keyword in _SCHEMAS:
            yield from ((f"{keyword}[{place}]", one) for place, one in enumerate(value))
        elif keyword in _NAMED_SCHEMAS:
            yield from ((f"{keyword}.{name}", one) for name, one in value.items())


def _require(is_right: bool, where: str, rule: str, value: object) -> None:
    if not is_right:
        raise _fault(where, rule, value)


def _fault(where: str, rule: str, value: object) -> UsageError:
    return UsageError(f"{where} of an interface must {rule}, got {value!r:.100}.")
