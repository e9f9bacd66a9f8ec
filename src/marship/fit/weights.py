"""Finds the weights of a model in what a file holds, however their names are wrapped.

Trainers nest state dicts (`{"state_dict": ...}`), and wrappers prefix their names: `module.` (data
parallel), `_orig_mod.` (torch.compile), a Lightning module's attribute. A prefix is only removed
where all names of the model then are there.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from marship.errors import CheckpointError
from marship.fit.torchfile import Foreign

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that PyTorch's wrappers add, at any place."""
OF_TRAINING = frozenset({"optimizer", "opt", "exp_avg", "exp_avg_sq", "grads", "grad", "momentum"})
"""Keys below which no weights lie, but what an optimizer keeps by their names."""
MOST_DEPTH = 4
SHOWN = 3
WHOLE_FILE = "."
"""The key of weights that are not nested."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A state dict of the file, as far as it has the model's names.

    Attributes:
        key: What `--weights-key` calls it: keys of the file and a prefix, with dots between.
        tensors: By the model's names; tied ones are complete.
        rest: Those beside them that the model has no names for.
        missing: Names of the model that it lacks.
        misshapen: Names whose shapes differ, with both shapes.
        mistyped: Names whose types do, with both types: numbers of which some would be lost, or
            that mean something only with a scale.
        not_numbers: Names of tensors that hold NaN.
        converted: Types of floats that are converted to the model's.
        others: How many tensors of its dict lie outside of the prefix.
        is_renamed: Whether names lost a prefix or parts of wrappers.
    """

    key: str
    tensors: Mapping[str, Any]
    rest: Mapping[str, Any]
    missing: Sequence[str]
    misshapen: Sequence[str]
    mistyped: Sequence[str]
    not_numbers: Sequence[str]
    converted: Sequence[str]
    others: int
    is_renamed: bool

    @property
    def is_whole(self) -> bool:
        """Whether the model can be loaded from it."""
        return not self.faults()

    def faults(self) -> str:
        """What does not fit, in words."""
        kinds = (
            ([*self.missing], "missing"),
            ([*self.rest], "unexpected"),
            ([*self.misshapen], "of another shape"),
            ([*self.mistyped], "of another type"),
            ([*self.not_numbers], "with values that are no numbers"),
        )
        return ", ".join(
            f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''})"
            for names, what in kinds
            if names
        )

    def remark(self) -> str | None:
        """What was taken of the file, in one line; None if it was all, by its own names."""
        is_plain = self.key == WHOLE_FILE and not self.others and not self.is_renamed
        if is_plain and not self.converted:
            return None
        place = "" if self.key == WHOLE_FILE else f" under {self.key}"
        others = f"; {self.others} others were left out" if self.others else ""
        types = f"; converted from {', '.join(self.converted)}" if self.converted else ""
        return f"weights: {len(self.tensors)} tensors{place}{others}{types}"


def chosen(content: object, model: nn.Module, source: object, key: str | None) -> Fit:
    """The weights of a model in a file's content.

    Args:
        content: What the file holds.
        model: The model, already built.
        source: The file's path, for messages.
        key: Which to take where several fit; None for the only one.

    Raises:
        CheckpointError: None fits, several do and `key` is None, or `key` is not one of them.
    """
    fits = list(_fits(content, model))
    if not fits:
        raise CheckpointError(f"{source} must hold a state dict, got {described(content)}")
    whole = [fit for fit in fits if fit.is_whole]
    if key is not None:
        named = [fit for fit in fits if fit.key == key]
        if not named:
            keys = ", ".join(fit.key for fit in whole or fits)
            raise CheckpointError(
                f"--weights-key must be one of {keys}, got {key!r}: so {source} names its weights."
            )
        whole = [fit for fit in named if fit.is_whole]
        fits = named
    if len(whole) > 1:
        keys = ", ".join(fit.key for fit in whole)
        advised = [fit for fit in whole if not set(fit.key.split(".")) & OF_TRAINING] or whole
        raise CheckpointError(
            f"{source} must hold one set of weights for this {type(model).__name__}, got "
            f"{len(whole)}: {keys}. Choose one, such as --weights-key {advised[-1].key}"
        )
    return whole[0] if whole else max(fits, key=lambda fit: len(fit.tensors))


def described(content: object) -> str:
    """What a file without a state dict holds, and what to do."""
    save = "torch.save(model.state_dict(), path)"
    if isinstance(content, Foreign):
        return (
            f"a whole model, {content.name}, whose code would run. Load it where you trust it, "
            f"and save its state dict: {save}."
        )
    if isinstance(content, Mapping):
        models = [value.name for value in content.values() if isinstance(value, Foreign)]
        keys = ", ".join(str(key) for key in list(content)[:SHOWN])
        if {"state", "param_groups"} <= set(content):
            return f"an optimizer's state. Give the file of the model, saved with {save}."
        if models:
            return (
                f"whole objects ({', '.join(models[:SHOWN])}), whose code would run, under {keys}. "
                f"Load it where you trust it, and save a state dict: {save}."
            )
        return f"a dict of {keys or 'nothing'} without tensors. Save it with {save}."
    return f"{type(content).__name__}. Save it with {save}."


@dataclass(frozen=True, slots=True)
class _Own:
    """The names of a model: those without parts of wrappers, by them its own, and its tensors."""

    names: Mapping[str, str]
    tensors: Mapping[str, Any]
    tied: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Found:
    """A dict of tensors in the file: the keys that lead to it, and its names as those of `_Own`."""

    path: tuple[str, ...]
    tensors: Mapping[str, Any]
    names: Mapping[str, str]
    prefixes: Sequence[str]


def _fits(content: object, model: nn.Module) -> Iterator[Fit]:
    """Each dict of tensors in the content by each prefix that precedes the model's names there."""
    tensors = model.state_dict(keep_vars=True)
    own = _Own({_unwrapped(name): name for name in tensors}, tensors, _tied(tensors))
    for path, given in _tensor_dicts(content):
        names = {_unwrapped(name): name for name in given}
        if len(names) < len(given):  # two names differ in wrappers only
            names = {name: name for name in given}
        found = _Found(path, given, names, _prefixes(names, own.names) or [""])
        yield from (_fit(found, own, prefix) for prefix in found.prefixes)


def _fit(found: _Found, own: _Own, prefix: str) -> Fit:
    raw = {mine: found.names.get(prefix + name) for name, mine in own.names.items()}
    tensors = {name: found.tensors[place] for name, place in raw.items() if place is not None}
    for name in own.tensors.keys() - tensors.keys():
        twin = next((other for other in own.tied.get(name, ()) if raw[other] is not None), None)
        if twin is not None:
            tensors[name] = tensors[twin]
    used = {place for place in raw.values() if place is not None}
    start = _start(raw)
    beside = tuple(other for other in found.prefixes if len(other) > len(prefix))
    rest = {
        name.removeprefix(prefix): found.tensors[place]
        for name, place in found.names.items()
        if place not in used
        and name.startswith(prefix)
        and place.startswith(start)
        and not name.startswith(beside)
    }
    return Fit(
        key=".".join([*found.path, *filter(None, [start.rstrip(".")])]) or WHOLE_FILE,
        tensors=tensors,
        rest=rest,
        missing=[name for name in own.tensors if name not in tensors],
        misshapen=[t for n, v in tensors.items() if (t := _misshapen(n, v, own.tensors[n]))],
        mistyped=[t for n, v in tensors.items() if (t := _mistyped(n, v, own.tensors[n]))],
        not_numbers=[name for name, value in tensors.items() if _has_nan(value)],
        converted=sorted({t for n, v in tensors.items() if (t := _converted(v, own.tensors[n]))}),
        others=len(found.tensors) - len(used) - len(rest),
        is_renamed=any(place not in {None, name} for name, place in raw.items()),
    )


def _tensor_dicts(
    content: object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Dicts of tensors by name in a content, with the keys that lead to them."""
    if not isinstance(content, Mapping) or len(path) > MOST_DEPTH:
        return
    texts = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {k: v for k, v in texts.items() if isinstance(v, torch.Tensor)}
    if tensors or not (path or content):  # a model may have none
        yield path, tensors | {k: v for k, v in texts.items() if k.endswith("_extra_state")}
    for key, value in texts.items():
        yield from _tensor_dicts(value, (*path, key))


def _unwrapped(name: str) -> str:
    """A name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(names: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Prefixes before the model's names, those that are before all or most of them."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most]


def _start(of_model: Mapping[str, str | None]) -> str:
    """What precedes the model's names in the file, if it is the same before each; else nothing."""
    starts = {
        raw.removesuffix(own) if raw.endswith(own) else ""
        for own, raw in of_model.items()
        if raw is not None
    }
    return starts.pop() if len(starts) == 1 else ""


def _tied(wanted: Mapping[str, Any]) -> dict[str, list[str]]:
    """By name, the other names of the same tensor; safetensors stores it once."""
    groups: dict[object, list[str]] = {}
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value):
            place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
            groups.setdefault(place, []).append(name)
    return {
        name: [other for other in names if other != name]
        for names in groups.values()
        for name in names
        if len(names) > 1
    }


def _misshapen(name: str, value: object, own: object) -> str | None:
    """The name with both shapes if they differ."""
    if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
        return None
    if nn.parameter.is_lazy(own) or own.shape == value.shape:
        return None
    return f"{name} {list(value.shape)}, not {list(own.shape)}"


def _mistyped(name: str, value: object, own: object) -> str | None:
    """The name with both types if a float would be made of a whole or a complex number."""
    if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
        return None
    is_float = value.is_floating_point()
    if is_float == own.is_floating_point() and value.is_complex() == own.is_complex():
        return None
    if is_float and not own.is_complex():  # a count that was saved as a float
        return None
    return f"{name} {_type(value)}, not {_type(own)}"


def _converted(value: object, own: object) -> str | None:
    """The type of a tensor of floats if the model's is another."""
    if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
        return None
    are_floats = value.is_floating_point() and own.is_floating_point()
    return _type(value) if are_floats and value.dtype is not own.dtype else None


def _has_nan(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    wide = value.float() if value.is_floating_point() and value.itemsize == 1 else value
    return bool(torch.isnan(wide).any())


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
