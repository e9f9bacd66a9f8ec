"""Settings: one frozen dataclass for each recipe and step, and the flags made from it.

A field is written `epochs: int = setting(100, "passes over the training data", minimum=1)`.
Its flag is `--epochs`; a TOML file given as `--settings` sets the same names. A flag overrides
the file, and the file overrides the default.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from marship import arguments, storage
from marship.errors import UsageError

S = TypeVar("S")


def setting(
    default: Any,  # noqa: ANN401  a setting is of any type that a flag can have
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    usual: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401  used where a value of the field's type is expected
    """A dataclass field with its help text, bounds, and values that the shell completes."""
    return dataclasses.field(
        default=default,
        metadata={"help": help_text, "min": minimum, "max": maximum, "usual": usual},
    )


def as_dict(settings: Any) -> dict[str, Any]:  # noqa: ANN401  any settings dataclass
    """The resolved values, JSON-serializable."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return values


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base of settings: values are of the fields' types and within their bounds.

    A text becomes a path where the field is one, and one text a tuple where it is a tuple of them.

    Raises:
        UsageError: A value is of another type, or out of bounds.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name, value in _checked(type(self), given).items():
            object.__setattr__(self, name, value)


def from_dict(kind: type[S], values: dict[str, Any], source: str) -> S:
    """Build settings of `kind` from plain values.

    Raises:
        UsageError: A name is unknown, or a value is not of the field's type.
    """
    known = get_type_hints(kind)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(
            f"{source} must name settings of {kind.__name__}, got {', '.join(unknown)}. "
            f"Known are: {', '.join(known)}."
        )
    return kind(**_checked(kind, values))


def _checked(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values by name as the fields' types have them."""
    hints = get_type_hints(kind)
    bounds = {
        item.name: (item.metadata.get("min"), item.metadata.get("max"))
        for item in dataclasses.fields(kind)
    }
    return {
        name: arguments.converted(hints[name], value, name, *bounds[name])
        for name, value in values.items()
    }


def flags(kind: type[S]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a function's parameter `settings` into one Typer option for each field of `kind`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def command(**given: Any) -> Any:  # noqa: ANN401  Typer calls it by name
            chosen = {f.name: given.pop(f.name) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
            file = given.pop("settings_file")
            return function(**given, settings=_resolve(kind, chosen, file))

        kept = [p for p in signature.parameters.values() if p.name != "settings"]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in [*kept, *_options(kind)]]
        )
        return command

    return decorate


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    parameters = [_option(item, hints[item.name]) for item in dataclasses.fields(kind)]
    file_option = typer.Option("--settings", help="a TOML file that sets the same names")
    return [*parameters, _parameter("settings_file", Path, file_option)]


def _option(item: "dataclasses.Field[Any]", hint: Any) -> inspect.Parameter:  # noqa: ANN401  a type
    """The flag of one field; if omitted it is None, or an empty list if it may be repeated."""
    bounds = {
        key: item.metadata[key] for key in ("min", "max") if item.metadata.get(key) is not None
    }
    usual = item.metadata.get("usual", ())
    shown = "" if item.default in (None, False, ()) else f" (default {_shown(item.default)})"
    option = typer.Option(
        f"--{item.name.replace('_', '-')}",  # named: else a bool would get a --no-... too
        help=f"{item.metadata.get('help', '')}{shown}",
        show_default=False,
        autocompletion=(lambda: list(usual)) if usual else None,
        **bounds,
    )
    many = isinstance(item.default, tuple)
    return _parameter(item.name, list[str] if many else hint, option, [] if many else None)


def _parameter(
    name: str,
    hint: Any,  # noqa: ANN401  a type
    option: Any,  # noqa: ANN401  Typer's
    default: list[str] | None = None,
) -> inspect.Parameter:
    annotation = hint if default is not None else hint | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _shown(default: Any) -> str:  # noqa: ANN401  defaults of any type
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _resolve(kind: type[S], chosen: dict[str, Any], file: Path | None) -> S:
    values: dict[str, Any] = {}
    if file is not None:
        values, _ = storage.read_toml(file)
    values |= {k: v for k, v in chosen.items() if v is not None and v != []}
    return from_dict(kind, values, str(file) if file else "the command line")
