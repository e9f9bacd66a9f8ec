"""Modules around models that cannot be exported as they are."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._export import converter
from torch.jit import _recursive
from torch.overrides import TorchFunctionMode

from marship.errors import ModelError

_RECURSIVE: Any = _recursive
Inputs = Mapping[str, torch.Tensor]
SHOWN = 300
"""Characters of torch's reason."""


class Wrapper(nn.Module):
    """A model whose forward takes inputs by name.

    Attributes:
        signature: The parameters of the model's own forward.
    """

    signature: inspect.Signature

    def traceable(self, inputs: Inputs) -> nn.Module:  # noqa: ARG002  for those that need them
        """A module that torch.export can trace, and that computes the same."""
        return self


def signature_of(model: nn.Module) -> inspect.Signature:
    """The parameters of a model's forward."""
    return model.signature if isinstance(model, Wrapper) else inspect.signature(model.forward)


class _Opened(Wrapper):
    def train(self, mode: bool = True) -> "_Opened":  # noqa: ARG002  torch's own
        """Ignore the mode: it was fixed when the file was made."""
        return self


class Program(_Opened):
    """A program of torch.export."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        program: Any = torch.export.load(path)
        self.inner = program.module(check_guards=False)  # they would fix sizes anew
        self.signature = inspect.signature(self.inner.forward)
        spec = program.call_spec.in_spec
        self.positional = 0 if spec is None else spec.child(0).num_children

    def forward(self, **inputs: torch.Tensor) -> Any:  # noqa: ANN401  what the program returns
        """Run the program."""
        names = [name for name in self.signature.parameters if name in inputs]
        first, rest = names[: self.positional], names[self.positional :]
        return self.inner(*(inputs[n] for n in first), **{name: inputs[name] for name in rest})


class Script(_Opened):
    """A TorchScript model."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        load: Any = torch.jit.load  # it has no types
        self.script = load(str(path), map_location="cpu").eval()
        empty = inspect.Parameter.empty
        self.signature = inspect.Signature(
            [
                inspect.Parameter(
                    given.name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=given.default_value if given.has_default_value() else empty,
                )
                for given in self._arguments().values()
            ]
        )

    def forward(self, **inputs: torch.Tensor) -> Any:  # noqa: ANN401  what the model returns
        """Run the model by TorchScript's interpreter."""
        return self.script(**inputs)

    def traceable(self, inputs: Inputs) -> nn.Module:
        """Its graph as one of torch.fx: torch.export traces no TorchScript.

        Raises:
            ModelError: torch cannot convert it.
        """
        names = tuple(inputs)
        given = [(name, str(of.type)) for name, of in self._arguments().items()]
        is_plain = given == [(name, "Tensor") for name in names]
        script = self.script if is_plain else self._of(names)
        try:
            return _Graph(_as_fx(script, tuple(inputs.values())), names)
        except Exception as error:  # torch raises errors of many unrelated types
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"the TorchScript model must be convertible by PyTorch, got: {lines[0][:SHOWN]}. "
                "Export the model from its Python code, or from a file of torch.export."
            ) from error

    def _arguments(self) -> dict[str, Any]:
        """What its schema says of each parameter; the first is self."""
        return {given.name: given for given in self.script.forward.schema.arguments[1:]}

    def _of(self, names: tuple[str, ...]) -> torch.jit.ScriptModule:
        """The model with these inputs alone: torch's conversion wants a value for each other."""
        taken = ", ".join(f"{name}: Tensor" for name in names)
        given = ", ".join(f"{name}={name}" for name in names)
        outer = torch.nn.ModuleList([self.script])  # the least module that holds another
        script: Any = _RECURSIVE.create_script_module(outer, lambda _: (), share_types=False)
        script.define(f"def forward(self, {taken}):\n    return getattr(self, '0')({given})\n")
        frozen: torch.jit.ScriptModule = torch.jit.freeze(script.eval())
        return frozen


class _Graph(nn.Module):
    """A TorchScript model's graph, converted."""

    def __init__(self, graph: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.graph, self.names = graph, names

    def forward(self, **inputs: torch.Tensor) -> Any:  # noqa: ANN401  what the model returns
        """Run the graph."""
        return self.graph(*(inputs[name] for name in self.names))


def _as_fx(script: torch.jit.ScriptModule, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """The result of torch's own conversion before its last step, a trace at other bounds."""
    graphs: list[nn.Module] = []

    class Converter(converter.TS2EPConverter):
        def retrace_as_exported_program(self, gm: torch.fx.GraphModule, *rest: Any) -> Any:  # noqa: ANN401
            graphs.append(gm)
            return super().retrace_as_exported_program(gm, *rest)

    try:
        Converter(script, inputs).convert()
    except Exception:  # of the last step, or of one before, which is raised again below
        if not graphs:
            raise
    return graphs[0]


class Replacing(TorchFunctionMode):
    """Calls others in place of some of torch's functions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  what the function returns
        """Call a function, or the one in its place."""
        return self.call(func, *args, **(kwargs or {}))

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function, or the one in its place."""
        return func(*args, **kwargs)


class Adapted(Wrapper):
    """A model with some of torch's functions replaced."""

    def __init__(self, model: nn.Module, replaced: Callable[[], Replacing]) -> None:
        super().__init__()
        self.model, self.replaced = model, replaced
        self.signature = signature_of(model)

    def forward(self, **inputs: torch.Tensor) -> Any:  # noqa: ANN401  what the model returns
        """Run the model."""
        with self.replaced():
            return self.model(**inputs)


class InFloat32(Replacing):
    """Computes in float32 where a model asks for bfloat16, which ONNX Runtime's CPU lacks."""

    has_replaced = False

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function with float32 in place of bfloat16."""
        if func is torch.Tensor.bfloat16:
            self.has_replaced = True
            return args[0].float()
        given = [self._wide(value) for value in args]
        return func(*given, **{name: self._wide(value) for name, value in kwargs.items()})

    def _wide(self, value: object) -> object:
        if value is not torch.bfloat16:
            return value
        self.has_replaced = True
        return torch.float32


class KeptRows(Replacing):
    """Keeps the first axis in `squeeze()`, which else removes a batch of one row, too."""

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function, or squeeze all axes of one but the first."""
        is_plain = func in {torch.squeeze, torch.Tensor.squeeze} and len(args) == 1 and not kwargs
        if not is_plain:
            return func(*args, **kwargs)
        sizes = list(enumerate(args[0].shape))[1:]
        ones = [axis for axis, size in sizes if isinstance(size, int) and size == 1]
        return args[0].squeeze(tuple(ones)) if ones else args[0]
