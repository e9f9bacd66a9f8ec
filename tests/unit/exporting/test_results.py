"""exporting.results: tensors that forward returns, named by what they are nested in."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from marship.errors import ModelError
from marship.exporting.results import left_out, named_tensors

ONE, TWO = torch.ones(1), torch.zeros(2)
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Plain:
    """As many repositories return outputs."""

    sample: torch.Tensor
    inner: Any = None


class Registered(OrderedDict):  # type: ignore[type-arg]
    """Registered without key paths, as diffusers' outputs."""


@dataclass
class Diffused(OrderedDict):  # type: ignore[type-arg]
    """A dataclass that is a dict, too, without what is None: BaseOutput of diffusers."""

    sample: torch.Tensor
    loss: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.update({"sample": self.sample} if self.loss is None else vars(self))


class Box:
    """A container that only pytree knows."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)


pytree.register_pytree_node(
    Registered,
    lambda o: (list(o.values()), list(o)),
    lambda v, k: Registered(zip(k, v, strict=True)),
)
pytree.register_pytree_node(Box, lambda box: (box.parts, None), lambda parts, _: Box(*parts))


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (ONE, ["output"]),
        ((ONE, TWO), ["output_0", "output_1"]),
        ([ONE, (TWO, ONE)], ["output_0", "output_1_0", "output_1_1"]),
        ({"a": ONE, "b": {"c": TWO, "d": [ONE]}}, ["a", "b_c", "b_d_0"]),
        ({3: ONE}, ["output_3"]),
        (Plain(ONE), ["sample"]),
        (Plain(ONE, {"x": Plain(TWO)}), ["sample", "inner_x_sample"]),
        (Pair(ONE, TWO), ["first", "second"]),
        (torch.max(torch.eye(3), 0), ["output_0", "output_1"]),
        (Registered(sample=ONE), ["sample"]),
        (Diffused(ONE), ["sample"]),
        (Diffused(ONE, TWO), ["sample", "loss"]),
        (Box(ONE, {"a": TWO}), ["output_0", "output_1_a"]),
        ({"a": {"b": ONE}, "a_b": TWO}, ["a_b", "a_b_2"]),
        ({"a": None, "b": ONE}, ["b"]),
    ],
)
def test_tensors_are_named_by_their_place(returned: object, names: list[str]) -> None:
    """Keys, fields and indices; names are unique."""
    assert [name for name, _ in named_tensors(returned)] == names


def test_types_that_numpy_lacks_become_float32() -> None:
    """Which holds each of their values."""
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        ((_, tensor),) = named_tensors(torch.tensor([0.5, -2.0]).to(dtype))
        assert tensor.dtype is torch.float32
        assert tensor.tolist() == [0.5, -2.0]


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_a_tensor_that_is_not_of_plain_numbers_is_refused(tensor: torch.Tensor) -> None:
    """By its name."""
    with pytest.raises(ModelError, match=r"got .* in spectrum\. Return"):
        named_tensors({"spectrum": tensor})


def test_what_is_no_tensor_is_listed_with_its_type() -> None:
    """None is nothing."""
    returned = {"logits": ONE, "loss": 0.5, "cache": object(), "none": None, "text": ["a"]}
    assert left_out(returned) == ["loss (float)", "cache (object)", "text_0 (str)"]
