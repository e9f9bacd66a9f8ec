"""Modules of many kinds that people have: exported, and equal at sizes that nobody tried."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marship.contract import Contract
from marship.errors import CheckpointError, InvalidInputError, ModelError, ParityError, UsageError
from marship.exporting import modules, programs, step
from marship.exporting.compare import OpsetError
from marship.exporting.step import ExportSettings, export, export_model
from marship.fit.recipe import resolve
from marship.serving.model.batch import validate
from nets import QUICK, exported, held, module, numbers, served, written

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchlib_read_once")]

LENGTH = {"dynamic": ("x:1=length",)}
SIDES = {"dynamic": ("x:2=h", "x:3=w"), "bounds": ("h=3:16", "w=3:16")}


@pytest.mark.parametrize(
    ("init", "body"),
    [
        ("self.r = nn.RNN(4, 6, batch_first=True)", "return self.r(x)[0]"),
        (
            "self.r = nn.RNN(4, 6, 2, nonlinearity='relu', bias=False, bidirectional=True)",
            "return self.r(x.transpose(0, 1))[1].transpose(0, 1)",
        ),
        (
            "self.r, self.g = nn.GRU(4, 6, 2, batch_first=True), nn.RNN(6, 3, batch_first=True)",
            "return self.g(self.r(x)[0])[0]",
        ),
    ],
)
def test_recurrent_layers_keep_their_length_variable(tmp_path: Path, init: str, body: str) -> None:
    """nn.RNN too, in both directions and several layers."""
    build = module(tmp_path, body, init)
    exported(tmp_path, build, LENGTH, x=numbers(3, 6, 4))
    for size in (1, 2, 9):
        held(tmp_path, build, {"x": numbers(2, size, 4)})


@pytest.mark.parametrize(
    "body",
    [
        "return F.adaptive_avg_pool2d(x, (3, 2))",
        "return F.adaptive_max_pool2d(x, 3)",
        "return nn.AdaptiveAvgPool2d((None, 3))(x)",
        "return F.adaptive_avg_pool2d(x, 1).flatten(1)",
        "return F.adaptive_max_pool1d(x.flatten(2), 4)",
    ],
)
def test_adaptive_pools_take_variable_sizes(tmp_path: Path, body: str) -> None:
    """Sizes that are no multiples of the number of windows, and smaller ones."""
    build = module(tmp_path, body)
    exported(tmp_path, build, SIDES, x=numbers(2, 2, 16, 16))
    for h, w in ((3, 3), (5, 13), (16, 7)):
        held(tmp_path, build, {"x": numbers(2, 2, h, w)})


def test_an_adaptive_maximum_of_a_fixed_size_is_exported(tmp_path: Path) -> None:
    """ONNX has no such operator."""
    build = module(tmp_path, "return F.adaptive_max_pool2d(x, (3, 5))")
    exported(tmp_path, build, {}, x=numbers(2, 2, 16, 11))
    held(tmp_path, build, {"x": numbers(3, 2, 16, 11)})


HALVES = "return torch.cat([self.up(F.max_pool2d(x, 4)), x], 1)"
UP = "self.up = nn.ConvTranspose2d(1, 1, 4, stride=4)"


def test_sizes_that_must_be_multiples_are_stated_with_a_step(tmp_path: Path) -> None:
    """The error names the flag; with it the contract has the step, and requests are held to it."""
    build = module(tmp_path, HALVES, UP)
    free = {"dynamic": ("x:2=h",), "bounds": ("h=8:32",)}
    with pytest.raises(ModelError, match=r"multiples of 4 only, .* --bounds h=8:32:4\."):
        exported(tmp_path, build, free, x=numbers(2, 1, 32, 32))
    stepped = {"dynamic": ("x:2=h",), "bounds": ("h=8:32:4",)}
    contract = exported(tmp_path, build, stepped, x=numbers(2, 1, 32, 32))
    assert contract.steps == {"h": 4}
    assert Contract.from_json(contract.to_json()).steps == {"h": 4}
    for size in (8, 12, 28):
        held(tmp_path, build, {"x": numbers(2, 1, size, 32)})
        validate({"x": numbers(2, 1, size, 32)}, contract)
    with pytest.raises(
        InvalidInputError, match="axis h of x must be from 8 to 32 and a multiple of 4, got 10"
    ):
        validate({"x": numbers(2, 1, 10, 32)}, contract)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ("h=8:30:4", r"multiples of their step, got '8:30:4'. Write 8:28:4\."),
        ("h=6:32:4", r"Write 8:32:4\."),
        ("h=8:32:0", r"name=low:high:step"),
        ("h=8:32:x", r"name=low:high:step"),
    ],
)
def test_bounds_whose_ends_are_no_multiples_are_refused(
    tmp_path: Path, bounds: str, says: str
) -> None:
    """Each message says what to write."""
    build = module(tmp_path, "return x")
    with pytest.raises(UsageError, match=says):
        exported(tmp_path, build, {"dynamic": ("x:1=h",), "bounds": (bounds,)}, x=numbers(2, 32))


SQUEEZED = ["return self.l(x).squeeze()", "return {'score': torch.squeeze(self.l(x)), 'x': x}"]


@pytest.mark.parametrize("body", SQUEEZED)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_squeeze_without_axis_keeps_the_batch(
    tmp_path: Path, body: str, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A regression's head: an output for each row, for one row too."""
    build = module(tmp_path, body, "self.l = nn.Linear(3, 1)")
    contract = exported(tmp_path, build, {}, x=numbers(rows, 3))
    assert contract.outputs[0].shape == ("batch",)
    assert contract.batch_axis == "batch"
    held(tmp_path, build, {"x": numbers(5, 3)})
    assert served(tmp_path, {"x": numbers(1, 3)})[0].shape == (1,)
    assert "squeeze() keeps the batch" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "body",
    [
        "return self.l.bfloat16()(x.bfloat16())",
        "return self.l.bfloat16()(x.to(self.l.weight.dtype)).softmax(-1)",
        "return self.l(x).to(dtype=torch.bfloat16)",
    ],
)
def test_bfloat16_is_served_as_float32(
    tmp_path: Path, body: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's CPU has no kernels for it; what was done is printed."""
    build = module(tmp_path, body, "self.l = nn.Linear(3, 2)")
    contract = exported(tmp_path, build, {}, x=numbers(4, 3))
    assert contract.outputs[0].dtype == "float32"
    want = resolve(build)()(torch.from_numpy(numbers(5, 3))).detach().float().numpy()
    (got,) = served(tmp_path, {"x": numbers(5, 3)})
    np.testing.assert_allclose(got, want, atol=0.05)
    assert "bfloat16 is computed in float32" in capsys.readouterr().out


def test_whole_numbers_that_differ_from_bfloat16_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line says what share of them is another, and claims nothing of floats without any."""
    body = "return (x.bfloat16().float() * 256).round().long(), x.bfloat16().float() == x"
    exported(tmp_path, module(tmp_path, body), {}, x=numbers(40, 3))
    said = " ".join(capsys.readouterr().out.split())
    want = resolve(f"{tmp_path / 'net.py'}:build")()(torch.from_numpy(numbers(40, 3)))
    shares = [
        f"{(one != torch.from_numpy(other)).double().mean():.2g} of the values of output_{place}"
        for place, (one, other) in enumerate(
            zip(want, served(tmp_path, {"x": numbers(40, 3)}), strict=True)
        )
    ]
    assert f"{' and '.join(shares)} are others than in bfloat16" in said
    assert "at most" not in said


def test_outputs_in_a_dataclass_are_exported_and_others_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fields are names; what is no tensor is said."""
    build = written(
        tmp_path,
        """
        from dataclasses import dataclass


        @dataclass
        class Out:
            sample: torch.Tensor
            extra: dict
            loss: float = 0.5


        class Net(nn.Module):
            def forward(self, x):
                return Out(x * 2, {"sum": x.sum(1)})


        def build():
            return Net()
        """,
    )
    contract = exported(tmp_path, build, {}, x=numbers(4, 3))
    assert [spec.name for spec in contract.outputs] == ["sample", "extra_sum"]
    assert "loss (float)" in capsys.readouterr().out


@pytest.mark.parametrize("works", [22, 20])
def test_older_opsets_are_tried_from_new_to_old(
    tmp_path: Path,
    works: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first that runs is taken, and said; one that gives wrong outputs is never taken."""
    from marship.exporting import conversion

    tried = []
    own = conversion._write

    def write(source: Any, build: Any, examples: Any, settings: Any, draft: Any) -> Any:
        tried.append(settings.opset)
        if settings.opset > works:
            raise OpsetError("model.onnx must load in ONNX Runtime, got: no kernel.")
        return own(source, build, examples, settings, draft)

    monkeypatch.setattr(conversion, "_write", write)
    build = module(tmp_path, "return x * 2")
    assert exported(tmp_path, build, {}, x=numbers(4, 3)).opset == works
    assert tried == list(range(23, works - 1, -1))
    assert f"opset {works} was taken: with opset 23 model.onnx must load" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_older_opset_with_other_outputs_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first failure is reported."""
    from marship.exporting import conversion

    def write(*given: Any) -> Any:
        raise OpsetError("no kernel.") if given[3].opset == 23 else ParityError("2 apart.")

    monkeypatch.setattr(conversion, "_write", write)
    with pytest.raises(OpsetError, match="no kernel"):
        exported(tmp_path, module(tmp_path, "return x"), {}, x=numbers(4, 3))


class Branch(torch.nn.Module):
    """Control flow that only a script keeps."""

    def forward(self, x: torch.Tensor, scale: int = 2) -> torch.Tensor:
        """Answer for a batch."""
        return torch.relu(x) * scale


def layers() -> torch.nn.Module:
    """Layers of several kinds."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 3, padding=1), torch.nn.BatchNorm1d(3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(15, 2),
    ).eval()  # fmt: skip


def program(path: Path) -> torch.nn.Module:
    """Layers as a program of torch.export with a variable batch."""
    model = layers()
    shapes = {"input": {0: torch.export.Dim("b")}}
    torch.export.save(
        torch.export.export(model, (torch.ones(4, 2, 5),), dynamic_shapes=shapes), path
    )
    return model


def scripted(path: Path) -> torch.nn.Module:
    """Layers as TorchScript."""
    model = layers()
    torch.jit.script(model).save(str(path))
    return model


def traced(path: Path) -> torch.nn.Module:
    """Layers as a trace."""
    model = layers()
    torch.jit.trace(model, torch.ones(4, 2, 5)).save(str(path))
    return model


@pytest.mark.parametrize(
    ("made", "name"), [(program, "m.pt2"), (scripted, "m.pt"), (traced, "m.ts")]
)
def test_a_models_file_is_exported_where_it_is_trusted(
    tmp_path: Path,
    made: Callable[[Path], torch.nn.Module],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the flag the risk is named and nothing is opened; outputs equal PyTorch's.

    A second export is kept, and nothing is opened for it.
    """
    model = made(tmp_path / name)
    np.savez(tmp_path / "example.npz", input=numbers(4, 2, 5))
    given: dict[str, Any] = {"example": tmp_path / "example.npz", "out": tmp_path / "run"}
    with pytest.raises(UsageError, match=r"somebody you trust, got a .*--trust-code"):
        export(tmp_path / name, ExportSettings(**QUICK), **given)
    done = export(tmp_path / name, ExportSettings(**QUICK), **given, trust_code=True)
    assert done.fresh
    assert done.contract.batch_axis == "batch"
    inputs = numbers(7, 2, 5, seed=1)
    (got,) = served(tmp_path, {"input": inputs})
    np.testing.assert_allclose(got, model(torch.from_numpy(inputs)).detach(), atol=1e-4)
    assert "in a process of its own" in " ".join(capsys.readouterr().err.split())
    assert not export(tmp_path / name, ExportSettings(**QUICK), **given, trust_code=True).fresh
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("w.pt", r"weights alone.* marship export model\.py:build --weights .*w\.pt"),
        ("w.onnx", "marship package"),
        ("w.py", r"marship export .*w\.py:build"),
        ("w.txt", "torch.export and TorchScript do not write"),
    ],
)
def test_another_file_is_told_what_to_type(tmp_path: Path, name: str, says: str) -> None:
    """Whatever it is."""
    torch.save(layers().state_dict(), tmp_path / name)
    with pytest.raises(UsageError, match=says):
        export(tmp_path / name, example=tmp_path / "example.npz")
    with pytest.raises(UsageError, match="got nothing there"):
        export(tmp_path / "none.pt2", example=tmp_path / "example.npz")


class Left(torch.nn.Module):
    """An input that may be left out, one that has a value, and a step of training."""

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, times: int = 2
    ) -> torch.Tensor:
        """Answer for a batch."""
        x = torch.dropout(x, 0.5, self.training) * times
        return x if mask is None else x * mask


class Loop(torch.nn.Module):
    """A loop over a size, which torch does not convert."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answer for a batch."""
        total = torch.zeros(x.size(0))
        for place in range(x.size(1)):
            total = (total + x[:, place]).tanh()
        return total


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", [lambda script: script, lambda s: torch.jit.freeze(s.eval())])
def test_torchscript_with_inputs_left_out_is_traced(
    tmp_path: Path, form: Callable[[Any], Any], *, training: bool
) -> None:
    """Those that have a default; saved in training, or frozen."""
    form(torch.jit.script(Left().train(training))).save(str(tmp_path / "m.pt"))
    model, inputs = modules.Script(tmp_path / "m.pt"), {"x": torch.ones(4, 3)}
    assert torch.equal(model.traceable(inputs)(**inputs), torch.full((4, 3), 2.0))
    inputs["mask"] = torch.zeros(4, 3)
    assert torch.equal(model.traceable(inputs)(**inputs), torch.zeros(4, 3))


def test_torchscript_that_torch_does_not_convert_is_refused_in_one_line(tmp_path: Path) -> None:
    """With torch's reason and what to do; the other process prints no traceback."""
    torch.jit.script(Loop()).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "example.npz", x=numbers(4, 3))
    with pytest.raises(ModelError, match=r"got: TS2EP.*prim::Loop\. Export the model from its"):
        export(tmp_path / "m.pt", example=tmp_path / "example.npz", trust_code=True)


def test_any_error_of_the_other_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The classes that torch raises are many and unrelated."""
    raising = "def fail(*a, **k): raise IndexError('no such place\\nmore')\n"
    start = "from marship.exporting import programs, step\n" + raising
    monkeypatch.setattr(programs, "_START", start + "step.export_model = fail\nprograms.main()")
    program(tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"must be exportable, got IndexError: no such place\."):
        export(tmp_path / "m.pt2", example=tmp_path / "example.npz", trust_code=True)
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_in_the_other_process_is_raised_here(tmp_path: Path) -> None:
    """With its class and its message."""
    program(tmp_path / "m.pt2")
    np.savez(tmp_path / "example.npz", other=numbers(4, 2, 5))
    with pytest.raises(step.DataError, match="arrays named input, got other"):
        export(tmp_path / "m.pt2", example=tmp_path / "example.npz", trust_code=True)


def test_weights_of_several_are_chosen_by_key(tmp_path: Path) -> None:
    """In an export, which says what was taken and is made anew for another key."""
    build = module(tmp_path, "return self.l(x)", "self.l = nn.Linear(3, 1)")
    states = [
        resolve(build)().state_dict(),
        {"l.weight": torch.ones(1, 3), "l.bias": torch.ones(1)},
    ]
    torch.save({"net": states[0], "ema": states[1]}, tmp_path / "weights.pt")
    np.savez(tmp_path / "example.npz", x=numbers(4, 3))
    given: dict[str, Any] = {
        "example": tmp_path / "example.npz",
        "weights": tmp_path / "weights.pt",
        "out": tmp_path / "run",
        "settings": ExportSettings(**QUICK),
    }
    with pytest.raises(CheckpointError, match="net, ema"):
        export_model(build, **given)
    export_model(build, **given, weights_key="net")
    assert export_model(build, **given, weights_key="ema").fresh
    (got,) = served(tmp_path, {"x": np.ones((1, 3), np.float32)})
    np.testing.assert_allclose(got, [[4.0]], atol=1e-6)


def test_masked_scores_do_not_excuse_wrong_ones_beside_them(tmp_path: Path) -> None:
    """The exporter ignores divisor_override: the scores that are allowed are a quarter."""
    body = """scores = F.avg_pool2d(x, 2, divisor_override=1).flatten(1)
                return scores.masked_fill(~allowed, -1e9)"""
    build = module(tmp_path, body, inputs="x, allowed")
    allowed = np.random.default_rng(0).random((4, 16)) > 0.3
    with pytest.raises(ParityError, match="output output"):
        exported(tmp_path, build, {}, x=numbers(4, 1, 8, 8), allowed=allowed)


def test_whole_numbers_are_divided_as_such(tmp_path: Path) -> None:
    """The exporter would divide them as float32, which is exact up to 2^24."""
    body = """return (torch.div(x, 3600, rounding_mode="trunc") % 24,
                        torch.div(x, 7, rounding_mode="floor"), x // 3)"""
    build = module(tmp_path, body)
    small = np.random.default_rng(0).integers(0, 100000, (4, 3))
    contract = exported(tmp_path, build, {}, x=small)
    assert contract.inputs[0].value_range is None
    held(tmp_path, build, {"x": np.array([[12345678901, 3600 * 10**9 - 1, -1], [-3601, 2**62, 0]])})


def test_whole_numbers_that_the_file_computes_otherwise_are_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Divided by other whole numbers they are floats in the file: large ones are refused."""
    body = """return torch.div(x, n, rounding_mode="trunc") % 24"""
    build = module(tmp_path, body, inputs="x, n")
    example = {"x": np.arange(8), "n": np.arange(1, 9)}
    contract = exported(tmp_path, build, {}, **example)
    low, high = contract.inputs[0].value_range
    assert -(2**31) <= low < 0 < high <= 2**31
    assert f"input x must be from {low} to {high}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InvalidInputError, match="x must hold values from"):
        validate(example | {"x": np.arange(8) + 2**40}, contract)


@pytest.mark.parametrize("mask", ["keep", "torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)"])
@pytest.mark.parametrize("axis", [{}, {"dynamic": ("x:1=t", "keep:1=t")}])
def test_attention_with_a_key_mask_is_zero_where_nothing_is_left(
    tmp_path: Path, mask: str, axis: dict[str, Any]
) -> None:
    """One mask for all queries, and rows whose mask leaves no key: what PyTorch gives."""
    body = f"""q, mask = x[:, None], {mask}
                return F.scaled_dot_product_attention(q, q, q, attn_mask=mask[:, None, None, :])"""
    build = module(tmp_path, body, inputs="x, keep")
    keep = np.random.default_rng(0).random((4, 5)) > 0.3
    contract = exported(tmp_path, build, axis, x=numbers(4, 5, 8), keep=keep)
    assert contract.opset == ExportSettings().opset
    keep[1] = False
    held(tmp_path, build, {"x": numbers(4, 5, 8), "keep": keep})


def test_rows_that_are_masked_altogether_are_compared(tmp_path: Path) -> None:
    """A file with other outputs for them is refused, though drawn masks never leave out all."""
    body = """nothing = (~keep.any(-1, keepdim=True)).float()
                return x * keep + (0 if torch.compiler.is_compiling() else nothing)"""
    build = module(tmp_path, body, inputs="x, keep")
    keep = np.random.default_rng(0).random((4, 50)) > 0.3
    with pytest.raises(ParityError, match="where keep is False throughout"):
        exported(tmp_path, build, {}, x=numbers(4, 50), keep=keep)


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """NaN equals NaN in every comparison."""
    build = module(tmp_path, "return self.l(x) * float('nan')", "self.l = nn.Linear(3, 2)")
    with pytest.raises(ModelError, match="output output must hold numbers, got NaN throughout"):
        exported(tmp_path, build, {}, x=numbers(4, 3))


@pytest.mark.parametrize("settings", [{}, {"fixed_batch": True}])
def test_inputs_without_axes_are_exported(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A temperature and a count beside rows, whose number is variable or not."""
    build = module(tmp_path, "return (x / t).softmax(-1) * k", inputs="x, t, k")
    example = {"x": numbers(4, 3), "t": np.array(1.5, np.float32), "k": np.array(3)}
    contract = exported(tmp_path, build, settings, **example)
    assert [spec.shape for spec in contract.inputs[1:]] == [(), ()]
    rows = 4 if settings else 6
    held(tmp_path, build, {"x": numbers(rows, 3), "t": np.array(0.2, np.float32), "k": np.array(7)})


def test_places_in_an_axis_of_variable_size_are_exported(tmp_path: Path) -> None:
    """Drawn inputs of other sizes point inside: lengths, and places of the last token."""
    body = """last = x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, 3)).squeeze(1)
                return last + x[torch.arange(x.shape[0]), places]"""
    build = module(tmp_path, body, inputs="x, lengths, places")
    settings = {"dynamic": ("x:1=t",), "bounds": ("t=1:40",)}
    lengths = np.array([1, 9, 4, 7])
    example = {"x": numbers(4, 9, 3), "lengths": lengths, "places": lengths - 1}
    contract = exported(tmp_path, build, settings, **example)
    assert contract.batch_axis == "batch"
    lengths = np.array([30, 1, 17])
    held(tmp_path, build, {"x": numbers(3, 30, 3), "lengths": lengths, "places": lengths - 1})


@pytest.mark.parametrize("bounds", [("n=1:40", "e=1:80"), ()])
def test_edges_between_a_variable_number_of_nodes_are_exported(
    tmp_path: Path, bounds: tuple[str, ...]
) -> None:
    """A graph network, whose nodes and edges vary apart, also up to the example's own sizes."""
    body = "return torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]])"
    build = module(tmp_path, body, inputs="nodes, edges")
    settings = {
        "fixed_batch": True,
        "dynamic": ("nodes:0=n", "edges:1=e"),
        "bounds": bounds,
    }
    generator = np.random.default_rng(0)
    exported(
        tmp_path, build, settings, nodes=numbers(6, 3), edges=generator.integers(0, 6, (2, 10))
    )
    for nodes, edges in ((40, 80), (20, 7), (2, 50)) if bounds else ((6, 10), (2, 3)):
        index = generator.integers(0, nodes, (2, edges))
        held(tmp_path, build, {"nodes": numbers(nodes, 3), "edges": index})


def test_a_model_that_counts_its_calls_is_refused(tmp_path: Path) -> None:
    """The export's own calls would move it on; what the first call sets may stay."""
    body = """self.seen = x.shape[1]
                self.calls = self.calls + 1
                return x * (1 if self.calls < 100 else 2)"""
    build = module(tmp_path, body, "self.calls = 0")
    with pytest.raises(ParityError, match=r"keep anything between calls, got .*calls changed"):
        exported(tmp_path, build, {}, x=numbers(4, 3))
    (tmp_path / "net.py").write_text(
        (tmp_path / "net.py").read_text().replace("calls + 1", "calls")
    )
    exported(tmp_path, build, {}, x=numbers(4, 3))
