"""JSON Schemas as Python types, and dataclasses for their objects."""

import keyword
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_PLAIN = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
}
_MOST_LITERALS = 20
_TAKEN = {
    *("self", "path", "query", "field", "np", "npt"),
    *("str", "int", "float", "bool", "bytes", "list", "dict"),
    *("Any", "Literal", "Iterator", "Sequence", "Client", "TypedConnection", "ServiceError"),
    *("PATH", "OCTETS_TYPE", "decode", "picture_bytes", "recording_bytes"),
}
"""What the code of a package refers to: a parameter, a field or a class of the name would hide
it."""


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """A Python name for any name, unlike those that are taken.

    Example:
        >>> identifier("input.1"), identifier("class"), identifier("a", {"a"})
        ('input_1', 'class_', 'a_2')
        >>> identifier("float")
        'float_'
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    plain = f"{plain}_" if keyword.iskeyword(plain) or plain in _TAKEN else plain
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found


def unlike(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """A Python name for each of several names, unlike each other and those that are taken.

    Example:
        >>> unlike(["a-b", "a_b"])
        {'a-b': 'a_b', 'a_b': 'a_b_2'}
    """
    found: dict[str, str] = {}
    for name in names:
        found[name] = identifier(name, {*found.values(), *taken})
    return found


def class_name(name: str) -> str:
    """A name in CapWords.

    Example:
        >>> class_name("top_labels")
        'TopLabels'
    """
    words = re.split(r"[\W_]+", name, flags=re.ASCII)
    return identifier("".join(word[:1].upper() + word[1:] for word in words if word) or "Value")


@dataclass
class Classes:
    """The dataclasses that a package needs.

    Attributes:
        sources: Their code by name, each behind those that it refers to.
    """

    sources: dict[str, str] = field(default_factory=dict)

    def annotation(self, schema: Mapping[str, Any] | bool, name: str) -> str:
        """The annotation for a value of a schema; an object's class gets the name."""
        if isinstance(schema, bool):  # JSON Schema 2020-12, 4.3.2: all values, or none
            schema = {}
        if "anyOf" in schema:
            return self._union([self.annotation(one, name) for one in schema["anyOf"]])
        if "enum" in schema:
            return _literal(schema["enum"])
        kind = schema.get("type")
        if kind == "array":
            return self._array(schema.get("items", {}), name)
        if kind == "object" and schema.get("properties"):
            return self._class(schema, name)
        if kind == "object":
            return f"dict[str, {self.annotation(schema.get('additionalProperties', {}), name)}]"
        return _PLAIN.get(str(kind), "Any")

    def _union(self, parts: list[str]) -> str:
        return " | ".join(dict.fromkeys(parts))

    def _array(self, items: Mapping[str, Any] | bool, name: str) -> str:
        inner = items
        while isinstance(inner, Mapping) and inner.get("type") == "array":
            inner = inner.get("items", {})
        if _is_number(inner):
            return "npt.NDArray[np.float64]"
        one = name[:-1] if name.endswith("s") else f"{name}Item"
        return f"list[{self.annotation(items, one)}]"

    def _class(self, schema: Mapping[str, Any], name: str) -> str:
        required = set(schema.get("required", ()))
        properties = schema["properties"]
        lines: list[str] = []
        kinds = {one: self.annotation(properties[one], class_name(one)) for one in properties}
        ordered = sorted(properties, key=lambda one: one not in required)
        for one, own in unlike(ordered, self.sources).items():
            lines += _field(own, one, kinds[one], is_required=one in required)
            facts = properties[one]
            about = facts.get("description") if isinstance(facts, Mapping) else None
            lines += [f"    {_docstring(str(about))}"] if about else []
        about = _docstring(str(schema.get("description") or "As the server gives it."))
        return self._named(name, "\n".join([f"    {about}", "", *lines]))

    def _named(self, name: str, body: str) -> str:
        """A class of the same fields is the same; another one gets another name."""
        for known, source in self.sources.items():
            if source.partition("\n")[2].partition("\n")[2] == body:
                return known
        found = identifier(name, self.sources.keys())
        self.sources[found] = f"@dataclass(frozen=True, slots=True)\nclass {found}:\n{body}"
        return found


def _field(own: str, name: str, kind: str, *, is_required: bool) -> list[str]:
    options = [] if is_required else ["default=None"]
    options += [f"metadata={{'name': {name!r}}}"] if own != name else []
    full = kind if is_required or kind.endswith("None") else f"{kind} | None"
    value = f" = field({', '.join(options)})" if own != name else "" if is_required else " = None"
    return [f"    {own}: {full}{value}"]


def _is_number(schema: Mapping[str, Any] | bool) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "number" and "enum" not in schema


def _literal(values: list[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {str} and len(values) <= _MOST_LITERALS:
        return f"Literal[{', '.join(map(repr, values))}]"
    return {frozenset({str}): "str", frozenset({int}): "int"}.get(frozenset(kinds), "Any")


def _docstring(text: str) -> str:
    """A text as a docstring, whatever is in it."""
    quoted = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').replace("\n", " ")
    return f'"""{quoted}{" " if quoted.endswith(chr(34)) else ""}"""'


docstring = _docstring
