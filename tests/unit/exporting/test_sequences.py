"""Models of sequences: axes divided into parts, masks, packed sequences."""

from pathlib import Path

import numpy as np
import pytest
import torch

from marship.errors import ModelError, UsageError
from marship.exporting import capture
from marship.exporting.build import built
from marship.exporting.compare import NotConvertedError
from nets import exported, held, module, numbers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torchlib_read_once")]

EVEN = {"dynamic": ("x:1=n",), "bounds": ("n=2:8:2",)}
PADDED = "(mask > 0) & (mask < mask.amax(1, keepdim=True))"  # never all of a row
LATER = "torch.ones(x.shape[1], x.shape[1]).triu(1) > 0"
ADDED = "(mask[:, None] - mask[..., None]).repeat(2, 1, 1)"
FREE = {"dynamic": ("x:1=n",), "bounds": ("n=2:8",)}


@pytest.mark.parametrize(
    "body",
    [
        "a, b = x.chunk(2, dim=1); return a * b",
        "a, b = x.split(x.shape[1] // 2, 1); return a * b",
    ],
)
def test_an_axis_with_a_step_is_divided(tmp_path: Path, body: str) -> None:
    """Its parts are equal at all sizes; without a step the error names the line and the flag."""
    build = module(tmp_path, body)
    exported(tmp_path, build, EVEN, x=numbers(3, 8, 2))
    for size in (2, 6, 8):
        held(tmp_path, build, {"x": numbers(2, size, 2)})
    with pytest.raises(ModelError, match=r"net\.py, line 13\).* --bounds n=2:8:2\."):
        exported(tmp_path, build, FREE, x=numbers(3, 8, 2))


def test_parts_of_fixed_sizes_are_torchs_own(tmp_path: Path) -> None:
    """By number, by size with a smaller rest, and by sizes; as keyword arguments, too."""
    body = (
        "a, b = torch.chunk(x, chunks=2, dim=2); *c, d = x.split(split_size=3, dim=2); "
        "e, f = torch.split(x, [2, 5], dim=2); "
        "return a[..., :3] + b + d + c[0] + e[..., :1] + f[..., :1]"
    )
    build = module(tmp_path, body)
    exported(tmp_path, build, {"dynamic": ("x:1=n",)}, x=numbers(3, 8, 7))
    held(tmp_path, build, {"x": numbers(2, 5, 7)})


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences_are_refused_with_the_line_and_another_way(
    tmp_path: Path, kind: str
) -> None:
    """Their size depends on values, which no graph can hold."""
    build = module(
        tmp_path,
        "p = nn.utils.rnn.pack_padded_sequence("
        "x, lengths, batch_first=True, enforce_sorted=False); "
        "return nn.utils.rnn.pad_packed_sequence(self.r(p)[0], batch_first=True)[0]",
        f"self.r = nn.{kind}(2, 3, batch_first=True)",
        "x, lengths",
    )
    lengths = np.array([8, 3, 5])
    with pytest.raises(ModelError, match=r"a packed sequence.*\(net\.py, line 13\)\. Give the la"):
        exported(tmp_path, build, {"dynamic": ("x:1=n",)}, x=numbers(3, 8, 2), lengths=lengths)


@pytest.mark.parametrize(
    ("init", "body"),
    [
        (
            "self.a = nn.MultiheadAttention(4, 2, batch_first=True)",
            f"return self.a(x, x, x, key_padding_mask={PADDED}, need_weights=False)[0]",
        ),
        (
            "self.a = nn.MultiheadAttention(4, 2, batch_first=True)",
            f"return self.a(x, x, x, attn_mask={LATER})[0] + mask[:, :, None]",
        ),
        (
            "self.a = nn.MultiheadAttention(4, 2, batch_first=True)",
            f"return self.a(x, x, x, attn_mask={ADDED})[0]",
        ),
        (
            "pass",
            "return F.scaled_dot_product_attention(x, x, x, attn_mask=(mask < 1)[:, None, :])",
        ),
        (
            "pass",
            "return F.scaled_dot_product_attention(x, x, x, attn_mask=-1e4 * mask[:, None, :])",
        ),
    ],
    ids=["key padding", "boolean", "additive by head", "boolean by row", "additive by row"],
)
def test_masks_of_attention_are_exported(tmp_path: Path, init: str, body: str) -> None:
    """Over keys, pairs of places and heads, at lengths that nobody tried."""
    build = module(tmp_path, body, init, "x, mask")
    settings = {"dynamic": ("x:1=n", "mask:1=n"), "bounds": ("n=2:8",)}

    def mask(rows: int, size: int) -> np.ndarray:
        masked = np.zeros((rows, size), np.float32)
        masked[0, size - 1 :] = 1
        return masked

    exported(tmp_path, build, settings, x=numbers(3, 8, 4), mask=mask(3, 8))
    for size in (2, 5):
        held(tmp_path, build, {"x": numbers(2, size, 4), "mask": mask(2, size)})


def test_an_lstm_that_rnn_follows_is_named() -> None:
    """Torch's words for it are about a node that nobody wrote."""
    error = NotConvertedError("torch's")
    error.__cause__ = ValueError("Node.meta arg4_1 is missing val field.")
    assert "an LSTM that nn.RNN follows; use nn.GRU" in capture._reason(error)


def test_a_program_of_torch_export_is_told_to_come_as_a_file() -> None:
    """Its module knows no eval mode."""
    linear = torch.nn.Linear(2, 1)
    program = torch.export.export(linear, (torch.ones(3, 2),))
    with pytest.raises(UsageError, match=r"program of torch\.export\. .* model\.pt2"):
        built(program.module, "net:build", {}, None)
