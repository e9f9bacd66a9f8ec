"""JSON Schemas as Python types, and dataclasses for their objects."""

import keyword
import re
from collections.abc import Collection, Mapping
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
_TAKEN = {"self", "path", "query"}


def identifier(name: str, taken: Collection[str] = ()) -> str:
    """A Python name for any name, unlike those that are taken.

    Example:
        >>> identifier("input.1"), identifier("class"), identifier("a", {"a"})
        ('input_1', 'class_', 'a_2')
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    plain = f"{plain}_" if keyword.iskeyword(plain) or plain in _TAKEN else plain
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
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

    def annotation(self, schema: Mapping[str, Any], name: str) -> str:
        """The annotation for a value of a schema; an object's class gets the name."""
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

    def _array(self, items: Mapping[str, Any], name: str) -> str:
        while items.get("type") == "array":
            inner = items.get("items", {})
            if _is_number(inner):
                return "npt.NDArray[np.float64]"
            if inner.get("type") != "array":
                break
            items = inner
        if _is_number(items):
            return "npt.NDArray[np.float64]"
        one = name[:-1] if name.endswith("s") else f"{name}Item"
        return f"list[{self.annotation(items, one)}]"

    def _class(self, schema: Mapping[str, Any], name: str) -> str:
        required = set(schema.get("required", ()))
        properties = schema["properties"]
        lines: list[str] = []
        taken: set[str] = set()
        for one in sorted(properties, key=lambda one: one not in required):
            own = identifier(one, taken)
            taken.add(own)
            kind = self.annotation(properties[one], class_name(f"{one}"))
            lines += _field(own, one, kind, is_required=one in required)
            about = properties[one].get("description")
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


def _is_number(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "number" and "enum" not in schema


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
