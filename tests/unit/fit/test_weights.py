"""fit.weights and fit.torchfile: weights as trainers and wrappers leave them, or what they are."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from marship.errors import CheckpointError
from marship.fit import checkpoint

State = dict[str, Any]


class Settings(dict):  # type: ignore[type-arg]
    """A dict with a class of its own, as Lightning keeps hyperparameters in."""


class Tied(nn.Module):
    """A model whose first and last layer share a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def net() -> nn.Module:
    """A model of two layers, with buffers."""
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(model: nn.Module, state: State) -> bool:
    """Whether a model has these weights."""
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def prefixed(prefix: str) -> Callable[[State], State]:
    """A wrapper of names."""
    return lambda state: {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "an attribute": prefixed("model."),
    "nested attributes": prefixed("net.backbone.model."),
    "one layer compiled": lambda s: {
        name.replace("0.", "0._orig_mod.", 1) if name.startswith("0.") else name: value
        for name, value in s.items()
    },
    "DeepSpeed's, of one rank": lambda s: {  # mp_rank_00_model_states.pt
        "module": s,
        "buffer_names": [name for name in s if "running" in name],
        "optimizer": None,
        "param_shapes": [{name: value.shape for name, value in s.items()}],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": {"step": 7},
        "ds_config": {"zero_optimization": {"stage": 1}, "train_batch_size": 8},
        "ds_version": "0.18.1",
        "global_steps": 3,
        "dp_world_size": 2,
    },
    "DeepSpeed's, merged by zero_to_fp32 for a trainer": prefixed("module.model."),
    "a trainer's": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "tutorials'": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "short": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "DeepSpeed's": lambda s: {"module": prefixed("module.")(s), "ds_version": "0.15"},
    "nested twice": lambda s: {"checkpoint": {"state": {"net": s}}},
    "averaged": lambda s: {**prefixed("module.")(s), "n_averaged": torch.tensor(3)},
    "Lightning's": lambda s: {
        "state_dict": {**prefixed("model.")(s), "loss.weight": torch.ones(2)},
        "hyper_parameters": Settings(width=4, scale=np.float64(0.5), place=Path("data")),
        "pytorch-lightning_version": "2.0",
        "callbacks": {"best": np.float32(0.1)},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_however_they_are_wrapped(tmp_path: Path, form: str) -> None:
    """The same weights in every form, and one line that says what was taken."""
    state = net().state_dict()
    torch.save(FORMS[form](dict(state)), tmp_path / "weights.pt")
    model = net()
    said = checkpoint.load_weights(tmp_path / "weights.pt", model)
    assert same(model, state)
    assert said
    assert "\n" not in said
    assert f"{len(state)} tensors" in said


def test_a_plain_state_dict_needs_no_remark(tmp_path: Path) -> None:
    """Nothing was left out or renamed."""
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    assert checkpoint.load_weights(tmp_path / "weights.pt", net()) is None


def test_names_that_fit_keep_their_prefix(tmp_path: Path) -> None:
    """A model whose own layers are called module and model is loaded as it is."""
    own = nn.ModuleDict({"module": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    torch.save(own.state_dict(), tmp_path / "weights.pt")
    other = nn.ModuleDict({"module": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    assert checkpoint.load_weights(tmp_path / "weights.pt", other) is None
    assert same(other, own.state_dict())


EMA: dict[str, tuple[Callable[[State, State], State], str, str]] = {
    "two dicts": (lambda s, e: {"net": s, "net_ema": e}, "net", "net_ema"),
    "beside": (lambda s, e: {**s, **prefixed("ema.")(e)}, ".", "ema"),
    "two prefixes": (
        lambda s, e: {"model": {**prefixed("online.")(s), **prefixed("ema_model.")(e)}},
        "model.online",
        "model.ema_model",
    ),
    "below a dict": (
        lambda s, e: {"student": prefixed("module.")(s), "teacher": {"net": e}},
        "student.module",
        "teacher.net",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", EMA)
def test_of_several_sets_of_weights_one_must_be_chosen(tmp_path: Path, form: str) -> None:
    """The error lists the keys and the flag; each key takes its own."""
    made, plain, averaged = EMA[form]
    first, second = net().state_dict(), net().state_dict()
    torch.save(made(dict(first), dict(second)), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"got 2: .*--weights-key") as e:
        checkpoint.load_weights(tmp_path / "weights.pt", net())
    assert f"{plain}, {averaged}" in str(e.value)
    for key, state in ((plain, first), (averaged, second)):
        model = net()
        checkpoint.load_weights(tmp_path / "weights.pt", model, key)
        assert same(model, state)
    with pytest.raises(CheckpointError, match=r"must be one of .*, got 'none'"):
        checkpoint.load_weights(tmp_path / "weights.pt", net(), "none")


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    """Safetensors drops one of two names; the model has both."""
    model, other = Tied(), Tied()
    save_model(model, str(tmp_path / "model.safetensors"))
    checkpoint.load_weights(tmp_path / "model.safetensors", other)
    assert same(other, model.state_dict())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda w: (w * 100).to(torch.int8), r"1 of another type \(.*weight int8, not float32\)"),
        (lambda w: w + 1j, "weight complex64, not float32"),
        (lambda w: w * torch.nan, r"1 with values that are no numbers \("),
    ],
)
def test_weights_that_would_be_loaded_as_something_else_are_refused(
    tmp_path: Path, changed: Callable[[torch.Tensor], torch.Tensor], says: str
) -> None:
    """Quantized numbers without their scales, complex ones, NaN; the model keeps its own."""
    model, state = net(), net().state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(name for name in state if name.endswith("weight"))
    torch.save({**state, name: changed(state[name])}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load_weights(tmp_path / "weights.pt", model)
    assert same(model, before)


def test_what_an_optimizer_keeps_is_not_advised(tmp_path: Path) -> None:
    """Its moments have the names of the weights, too."""
    state = dict(net().state_dict())
    held = {"model": state, "optimizer": {"exp_avg": state, "exp_avg_sq": state}}
    torch.save(held, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"such as --weights-key model$"):
        checkpoint.load_weights(tmp_path / "weights.pt", net())


@pytest.mark.parametrize("name", ["weights.pt", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    """A clone without it leaves one in place of each large file."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        checkpoint.load_weights(tmp_path / name, net())


def test_floats_of_other_widths_are_converted_and_told(tmp_path: Path) -> None:
    """float16, as many files have, and a count that was saved as a float."""
    state = {name: tensor.half() for name, tensor in net().state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    assert "converted from float16" in str(checkpoint.load_weights(tmp_path / "weights.pt", net()))


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_folder(tmp_path: Path, end: str) -> None:
    """Both name the same weights; a missing shard is named."""
    state, stem = net().state_dict(), {"safetensors": "model", "bin": "pytorch_model"}[end]
    names, shards = list(state), {}
    for number, part in enumerate((names[:3], names[3:])):
        shard = f"{stem}-0000{number + 1}-of-00002.{end}"
        kept = {name: state[name] for name in part}
        (save_file if end == "safetensors" else torch.save)(kept, tmp_path / shard)
        shards |= dict.fromkeys(part, shard)
    index = tmp_path / f"{stem}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    for place in (index, tmp_path):
        model = net()
        checkpoint.load_weights(place, model)
        assert same(model, state)
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=f"lie beside it, got {shard}"):
        checkpoint.load_weights(tmp_path, net())


@pytest.mark.parametrize(
    "text", ["", "[]", '{"weight_map": {"a": "../x.bin"}}', '{"weight_map": 3}']
)
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    """No shard of another folder is read."""
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json must"):
        checkpoint.load_weights(tmp_path, net())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, r"must hold model\.safetensors.* Give the file"),
        ({"zero_to_fp32.py": ""}, r"DeepSpeed's parts\. Merge it: python .*zero_to_fp32\.py"),
        ({".metadata": ""}, r"torch\.distributed's parts\. Merge it: .*dcp_to_torch"),
    ],
)
def test_a_folder_of_other_parts_is_told_how_to_merge(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    """What to type stands in the message."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load_weights(tmp_path, net())


class Own(nn.Module):
    """A model that is pickled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "a whole model": (Own, r"a whole model, .*Own, whose code would run.*model\.state_dict\(\)"),
    "a whole model of torch's": (net, r"a whole model, torch\.nn.*Sequential"),
    "whole models by name": (lambda: {"epoch": 1, "model": Own()}, r"whole objects \(.*Own\)"),
    "an optimizer": (lambda: torch.optim.Adam(net().parameters()).state_dict(), "an optimizer's"),
    "settings": (lambda: {"lr": 0.1, "epochs": 3}, "a dict of lr, epochs without tensors"),
    "a list": (lambda: [torch.ones(2)], "got list"),
    "a tensor": (lambda: torch.ones(2), "got Tensor"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_holds_no_weights_is_named(tmp_path: Path, kind: str) -> None:
    """The message says what was found and what to type, in one line."""
    made, says = OTHERS[kind]
    torch.save(made(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=says) as caught:
        checkpoint.load_weights(tmp_path / "weights.pt", net())
    assert "\n" not in str(caught.value)


def test_torchscript_and_programs_are_told_how_they_are_exported(tmp_path: Path) -> None:
    """Neither is a damaged file of weights."""
    torch.jit.script(net()).save(str(tmp_path / "script.pt"))
    program = torch.export.export(net().eval(), (torch.zeros(4, 6),))
    torch.export.save(program, tmp_path / "program.pt2")
    for name, kind in (("script.pt", "a TorchScript model"), ("program.pt2", "torch.export")):
        with pytest.raises(CheckpointError, match=f"{kind}.* marship export .*{name} --example"):
            checkpoint.load_weights(tmp_path / name, net())


def test_names_and_shapes_that_differ_are_told_apart(tmp_path: Path) -> None:
    """With their numbers and the first three."""
    path = tmp_path / "weights.pt"
    torch.save(prefixed("module.")(nn.Sequential(*[nn.Linear(6, 4)] * 3).state_dict()), path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(path, net())
    assert "3 missing (1.running_mean, 1.running_var, 1.num_batches_tracked)" in str(caught.value)
    assert "unexpected" not in str(caught.value)
    torch.save(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).state_dict(), path
    )
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_weights(path, net())
    assert "got 2 of another shape (2.weight [5, 4], not [2, 4], 2.bias [5]" in str(caught.value)
    assert "missing" not in str(caught.value)
    torch.save({**net().state_dict(), **prefixed("aux.")(nn.Linear(2, 2).state_dict())}, path)
    with pytest.raises(CheckpointError, match=r"got 2 unexpected \(aux\.weight, aux\.bias\)"):
        checkpoint.load_weights(path, net())


def test_weights_of_an_older_torch_are_completed_by_the_layer(tmp_path: Path) -> None:
    """BatchNorm once had no counter, weight_norm had other names: the layers know them."""
    state = net().state_dict()
    old = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(old, tmp_path / "weights.pt")
    checkpoint.load_weights(tmp_path / "weights.pt", net())
