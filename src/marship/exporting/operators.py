"""Forms of PyTorch's operators that a graph with variable sizes can hold.

torch unrolls recurrent layers, and computes the windows of adaptive pooling in Python: a trace of
either holds at one size only. ONNX Runtime's attention takes no mask of one query for all, and has
no zeros where everything is masked. These replace them while a model is traced; the model that the
file is compared with runs torch's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops import core
from torch._decomp import decompositions
from torch._higher_order_ops import while_loop
from torch.export import _patches as patches
from torch.nn import functional

from marship.errors import ModelError
from marship.exporting import guards
from marship.exporting.modules import Replacing

_OPSET: Any = opset18
_TORCHLIB: Any = core
_ATTENTION: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention
_DECOMPOSITIONS: Any = decompositions
_WHILE_LOOP: Any = while_loop
_PATCHES: Any = patches
"""Their own forms; they have no types for them."""


def _divided_whole(whole: Any, other: Any, rounding_mode: str | None = None) -> Any:  # noqa: ANN401  values of a graph
    """torch.div: whole numbers by one that is known are divided as such.

    The exporter divides as float32, which is exact up to 2^24. By 0 and -1, ONNX Runtime's division
    can end the process.
    """
    is_known = isinstance(other, int) and other not in {0, -1}
    if not is_known or rounding_mode is None or not whole.dtype.is_integer():
        return _TORCHLIB.aten_div_mode(whole, other, rounding_mode)
    if rounding_mode == "floor":
        return _TORCHLIB.aten_floor_divide(whole, other)
    return _OPSET.Div(whole, other)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.div.Tensor_mode: _divided_whole
}
"""How torch.onnx.export is to write operators that it would write otherwise."""

Activation = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def of_variable_size() -> Iterator[None]:
    """Let torch trace recurrent layers as loops, and adaptive pooling as products with a mask."""
    aten = torch.ops.aten
    recurrent = {
        aten.gru.input: _PATCHES.gru_while_loop_impl,
        aten.lstm.input: _PATCHES.lstm_while_loop_impl,
        aten.rnn_tanh.input: partial(_rnn, torch.tanh),
        aten.rnn_relu.input: partial(_rnn, torch.relu),
    }
    register = _PATCHES._register_rnn_while_loop_decomposition
    with ExitStack() as stack:
        for operator, implementation in recurrent.items():
            # a conversion leaves its decomposition here, which would fix the next one's length
            operator._dispatch_cache.clear()
            stack.enter_context(register(operator, implementation))
        for name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
            stack.enter_context(_replaced_pool(f"adaptive_{name}", _mean_of_bins))
        for name in ("max_pool1d", "max_pool2d", "max_pool3d"):
            stack.enter_context(_replaced_pool(f"adaptive_{name}", _largest_of_bins))
        stack.enter_context(_replaced_attention())
        yield


def _rnn(activation: Activation, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    """nn.RNN as a loop; the arguments are those of torch.ops.aten.rnn_tanh.input."""
    inputs, hidden, params, has_biases, *rest = args
    out, last = _DECOMPOSITIONS._rnn_helper(
        inputs,
        list(hidden.unbind(0)),
        _DECOMPOSITIONS.gather_params(params, has_biases, False),
        has_biases,
        *rest,
        partial(_rnn_layer, activation),
    )
    return out, torch.stack(last, 0)


def _rnn_layer(  # noqa: PLR0913, PLR0917  the signature that torch calls
    activation: Activation,
    inputs: torch.Tensor,
    hidden: torch.Tensor,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    reverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer in one direction.

    Args:
        activation: tanh or relu.
        inputs: float, shape (length, batch, width).
        hidden: float, shape (batch, hidden width).
        params: Weights of inputs and of hidden state, then their biases if there are any.
        has_biases: Whether there are.
        reverse: From the last input to the first.
    """
    of_input, of_hidden, *biases = params
    ahead = functional.linear(inputs, of_input, biases[0] if has_biases else None)
    ahead = ahead.flip(0) if reverse else ahead
    given = of_hidden, biases[1] if has_biases else None
    weight, bias = _PATCHES._clone_tensors_that_alias(given)

    def goes_on(step: torch.Tensor, _out: torch.Tensor, _state: torch.Tensor) -> torch.Tensor:
        return step < ahead.size(0)

    def body(
        step: torch.Tensor, out: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        check: Any = torch._check_is_size
        index: Any = step.item()
        check(index)
        check(index, max=ahead.size(0) - 1)
        state = activation(ahead[index] + functional.linear(state, weight, bias))
        out = out.clone()
        out[index] = state.squeeze(0)
        return step + 1, out, state

    state = hidden.unsqueeze(0)
    empty = torch.empty(ahead.size(0), *state.shape[1:], dtype=state.dtype, device=state.device)
    first = torch.zeros((), dtype=torch.int64)
    _, out, last = _WHILE_LOOP(goes_on, body, [first, empty, state])
    return (out.flip(0) if reverse else out), last.squeeze(0)


@contextmanager
def _replaced_pool(name: str, pooled: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Replace one of torch.nn.functional's adaptive pools where axes have variable sizes."""
    axes = int(name[-2])
    own = getattr(functional, name)

    def pool(
        inputs: torch.Tensor,
        output_size: int | Sequence[int | None],
        return_indices: bool = False,
    ) -> Any:  # noqa: ANN401  with indices a tuple
        counts = [output_size] * axes if isinstance(output_size, int) else list(output_size)
        sizes = inputs.shape[-axes:]
        is_plain = all(isinstance(size, int) for size in sizes) or set(counts) == {1}
        if return_indices or (is_plain and pooled is _mean_of_bins):  # ONNX lacks the other
            given = (return_indices,) if return_indices else ()
            return own(inputs, output_size, *given)
        for axis, count in zip(range(-axes, 0), counts, strict=True):
            if count is not None:
                moved = pooled(inputs.movedim(axis, -1), _bins(inputs.shape[axis], count))
                inputs = moved.movedim(-1, axis)
        return inputs

    setattr(functional, name, pool)
    try:
        yield
    finally:
        setattr(functional, name, own)


def _bins(size: int, count: int) -> torch.Tensor:
    """Which places of an axis are in each window of adaptive pooling: bool, shape (count, size).

    Window i is from floor(i * size / count) to ceil((i + 1) * size / count).
    """
    places, windows = torch.arange(size), torch.arange(count)
    starts = torch.div(windows * size, count, rounding_mode="floor")
    ends = torch.div((windows + 1) * size + (count - 1), count, rounding_mode="floor")
    return (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))


def _mean_of_bins(values: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Means over the windows of the last axis."""
    shares = bins.to(values.dtype)
    return values @ (shares / shares.sum(1, keepdim=True)).transpose(0, 1)


def _largest_of_bins(values: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """The largest value of each window of the last axis."""
    return values.unsqueeze(-2).masked_fill(~bins, float("-inf")).amax(-1)


class Traceable(Replacing):
    """Divides an axis of variable size into parts, and refuses packed sequences.

    torch computes from the size how many parts there are, and so takes one size for the only one.
    """

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function, or what is in its place."""
        if func is _PACK:
            raise ModelError(_PACKED.format(guards.place() or "a line of a package"))
        if func in _NUMBERS and args:
            return _divided(func, *args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def _replaced_attention() -> Iterator[None]:
    """Replace scaled_dot_product_attention by its name: nn.MultiheadAttention calls it that way.

    ONNX Runtime's operator needs an axis for heads and a mask for each query, and has no zeros
    where all keys are masked.
    """
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = _ATTENTION


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *given: Any,  # noqa: ANN401  torch's further arguments
    **named: Any,  # noqa: ANN401  the same
) -> torch.Tensor:
    """Attention with one head where there is no axis for heads, which ONNX's operator needs."""
    if query.ndim != _WITHOUT_HEADS:
        return _masked_attention(query, key, value, attn_mask, *given, **named)
    if attn_mask is not None and attn_mask.ndim == _WITHOUT_HEADS:
        attn_mask = attn_mask.unsqueeze(1)
    query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
    return _masked_attention(query, key, value, attn_mask, *given, **named).squeeze(1)


def _masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    *given: Any,  # noqa: ANN401  torch's further arguments
    **named: Any,  # noqa: ANN401  the same
) -> torch.Tensor:
    """Attention with a mask for each query, and zeros where all keys are masked."""
    if attn_mask is None:
        return _ATTENTION(query, key, value, None, *given, **named)
    allowed = attn_mask if attn_mask.dtype is torch.bool else attn_mask > float("-inf")
    for_all = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], key.shape[-2])
    found = _ATTENTION(query, key, value, for_all, *given, **named)
    return found.masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def _divided(func: Callable[..., Any], tensor: torch.Tensor, *given: Any, **named: Any) -> Any:  # noqa: ANN401
    """The parts of a tensor by torch.chunk or torch.split."""
    by, dim = _division(*given, **named)
    size = tensor.shape[dim]
    if isinstance(size, int):
        return func(tensor, *given, **named)
    with guards.exact():
        number = _NUMBERS[func](size, by)
    if not number:
        return func(tensor, *given, **named)
    part = size // number
    return tuple(tensor.narrow(dim, index * part, part) for index in range(number))


def _division(*given: Any, dim: int = 0, **named: Any) -> tuple[Any, int]:  # noqa: ANN401
    """By what an axis is divided, whatever torch calls it, and the axis."""
    by, *rest = (*given, *named.values())
    return by, rest[0] if rest else dim


def _number_of_chunks(size: Any, count: Any) -> int:  # noqa: ANN401  of variable size
    """The number of chunks if the size is a multiple of it; else 0."""
    return count if isinstance(count, int) and size % count == 0 else 0


def _number_of_parts(size: Any, part: Any) -> int:  # noqa: ANN401  of variable size
    """The number of parts of a size that depends on the axis's, if all are equal; else 0."""
    is_variable = isinstance(part, torch.SymInt)
    return int(size // part) if is_variable and size % part == 0 else 0


_WITHOUT_HEADS = 3  # axes: batch, length, width
_PACK: Any = torch._VF._pack_padded_sequence
_NUMBERS: dict[Any, Callable[[Any, Any], int]] = {
    torch.chunk: _number_of_chunks,
    torch.Tensor.chunk: _number_of_chunks,
    torch.split: _number_of_parts,
    torch.Tensor.split: _number_of_parts,
}
_PACKED = (
    "the model must be exportable, got a packed sequence, whose size depends on values: {}. Give "
    "the layer the padded sequence: where it runs forward only, outputs before each row's end are "
    "the same, so that x[torch.arange(len(x)), lengths - 1] is the last one, and a mask sets the "
    "rest to 0. For the other direction put each row's steps in reverse order, by gather."
)
