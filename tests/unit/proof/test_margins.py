"""Tolerances widened by what other numbers of threads make of golden cases."""

from pathlib import Path

import numpy as np
import pytest

from marship.contract import Arrays, Contract, GoldenCase
from marship.contract.tolerance import Tolerance, agree
from marship.proof import margins
from marship.proof.parity import OnnxRun


@pytest.mark.parametrize("atol", [0.0, 1e-4])
def test_a_difference_between_threads_is_within_any_tolerance_then(
    atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no absolute difference was allowed, and other outputs keep what they had."""
    want = {"y": np.array([0.0, 1.0], np.float32), "z": np.zeros(2, np.float32)}
    other: Arrays = {**want, "y": want["y"] + np.float32(0.01)}
    monkeypatch.setattr(margins, "runner", lambda *_: lambda _: other)
    contract = Contract((), (), ("m.onnx",), "", 17, tolerance=Tolerance(atol=atol, rtol=0))
    run = OnnxRun(Path("m.onnx"), session=None)
    found, gap = margins.with_threads(contract, run, [GoldenCase({}, want)])
    assert gap == pytest.approx(0.01)
    assert agree(other, want, found.tolerance)
    assert not agree({**want, "z": want["z"] + 2e-4}, want, found.tolerance)
