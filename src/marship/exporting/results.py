"""What forward returns: its tensors by name, whatever they are nested in."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from marship.errors import ModelError

WIDENED = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
"""Types that NumPy lacks; their tensors are returned as float32, which holds all their values."""

Leaf = tuple[tuple[str, ...], Any]


def named_tensors(returned: Any) -> list[tuple[str, torch.Tensor]]:  # noqa: ANN401  any nesting
    """Tensors by name: a dict's keys, fields of a dataclass or named tuple, indices, or "output".

    Raises:
        ModelError: A tensor is complex or sparse.
    """
    found = [(_name(path), leaf) for path, leaf in _leaves(returned) if _is_tensor(leaf)]
    seen: Counter[str] = Counter()
    named = []
    for name, tensor in found:
        if tensor.is_complex() or tensor.layout is not torch.strided:
            kind = str(tensor.dtype if tensor.is_complex() else tensor.layout).removeprefix(
                "torch."
            )
            raise ModelError(
                f"forward must return dense tensors of real numbers, got {kind} in {name}. "
                "Return torch.view_as_real() or to_dense() of it."
            )
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}_{seen[name]}"
        plain = tensor.detach()
        named.append((unique, plain.float() if plain.dtype in WIDENED else plain))
    return named


def left_out(returned: Any) -> list[str]:  # noqa: ANN401  any nesting
    """What forward returns beside tensors: each name with its type."""
    return [
        f"{_name(path)} ({type(leaf).__name__})"
        for path, leaf in _leaves(returned)
        if leaf is not None and not _is_tensor(leaf)
    ]


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[Leaf]:  # noqa: ANN401  any nesting
    parts = None if isinstance(value, torch.Tensor) else _parts(value)
    if parts is None:
        yield path, value
        return
    for name, part in parts:
        yield from _leaves(part, (*path, name))


def _parts(value: Any) -> list[tuple[str, Any]] | None:  # noqa: ANN401  any nesting
    """The parts of a container with their names; None if it is no container."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return [(str(index), part) for index, part in enumerate(value)]
    node = pytree.SUPPORTED_NODES.get(type(value))  # a class of another package, registered there
    if node is None:
        return None
    parts, _ = node.flatten_fn(value)
    return [(str(index), part) for index, part in enumerate(parts)]


def _name(path: tuple[str, ...]) -> str:
    name = "_".join(path)
    return f"output_{name}" if name[:1].isdigit() else name or "output"
