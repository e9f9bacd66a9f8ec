"""Objects from templates in YAML: values take the place of `%{name}`.

A text that is nothing but a placeholder becomes the value, of whatever type; None leaves the entry
out. In a longer text it becomes part of the text. So a value can never change the form of the rest.
"""

import string
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).with_name("templates")


class Blanks(string.Template):
    """Placeholders `%{name}`, as shells and Prometheus have the dollar."""

    delimiter = "%"


def filled(name: str, values: Mapping[str, object]) -> dict[str, Any]:
    """The object of a template.

    Args:
        name: The template's file, without `.yaml`.
        values: For its placeholders.
    """
    found: dict[str, Any] = _filled(_read(name), values)
    return found


@cache
def _read(name: str) -> Any:  # noqa: ANN401  YAML's
    return yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text())


def _filled(part: Any, values: Mapping[str, object]) -> Any:  # noqa: ANN401  YAML's
    if isinstance(part, dict):
        made = {key: _filled(value, values) for key, value in part.items()}
        return {key: value for key, value in made.items() if value is not None}
    if isinstance(part, list):
        return [made for value in part if (made := _filled(value, values)) is not None]
    if not isinstance(part, str):
        return part
    whole = Blanks.pattern.fullmatch(part)
    if whole is not None and whole["braced"]:
        return values[whole["braced"]]
    return Blanks(part).substitute(values)


class _Plain(yaml.SafeDumper):
    """Without references to what is there twice."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Write it twice."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the entries of a list below its name."""
        del indentless
        super().increase_indent(flow, False)


def text(value: Mapping[str, Any], note: str) -> str:
    """An object as YAML behind a comment."""
    body = yaml.dump(value, Dumper=_Plain, sort_keys=False, width=100, allow_unicode=True)
    return f"# {note}\n{body}"
