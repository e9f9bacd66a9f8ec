"""Differentially private training: what it adds, counts, refuses and tells."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from marship.errors import UsageError
from marship.fit import checkpoint, loop, privacy, run
from marship.fit.loop import Task, fit, start
from marship.fit.privacy import Privacy, PrivateSettings, PrivateSteps
from marship.fit.recipe import Recipe
from marship.storage import read_json

ROWS = 64
OTHER_ROWS_MIXED = "must treat each row alone"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads of models this small only wait for each other."""
    torch.set_num_threads(1)


def data(rows: int = ROWS) -> TensorDataset:
    """Rows of four numbers and their sum."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sum(1, keepdim=True))


def squared(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """The mean of each row's own loss."""
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train(
    run_dir: Path,
    model: nn.Module | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    **changes: Any,
) -> tuple[nn.Module, run.Fitted, PrivateSettings]:
    """A private run of a linear model, in this process."""
    given = {"epochs": 2, "batch_size": 8, "dp_epsilon": 8.0, "threads": 1} | changes
    settings = PrivateSettings(run_dir=run_dir, **given)
    accelerator = start(settings)
    model = model or nn.Linear(4, 1)
    task = Task(
        model=model,
        train=data(),
        loss=squared,
        optimizer=torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        data_digest="sums",
        validate=validate,
        privacy=settings.privacy(),
    )
    return model, fit(task, settings, accelerator), settings


def steps_of(model: nn.Module, rows: TensorDataset, **changes: Any) -> PrivateSteps:
    """The parts of a private run of SGD with a rate of 1."""
    given = {"epochs": 1, "batch_size": 16, "dp_epsilon": 8.0, "dp_clip": 0.5} | changes
    settings = PrivateSettings(**given)
    bound = settings.privacy()
    assert bound is not None
    return PrivateSteps(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        DataLoader(rows),
        privacy=bound,
        settings=settings,
    )


def step(private: PrivateSteps, batch: list[torch.Tensor], factor: float = 1.0) -> torch.Tensor:
    """One step; returns the change of all parameters."""
    before = torch.cat([p.detach().clone().flatten() for p in private.model.parameters()])
    private.optimizer.zero_grad()
    (factor * squared(private.model, batch)).backward()
    private.optimizer.step()
    return torch.cat([p.detach().flatten() for p in private.model.parameters()]) - before


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_the_bound_holds_exactly_where_it_is_known(epsilon: float) -> None:
    """All rows in each step is one Gaussian mechanism, whose exact delta is not above the stated.

    Dong, Roth and Su 2022, Gaussian Differential Privacy, corollary 2.13 and theorem 2.7.
    """
    private = steps_of(nn.Linear(4, 1), data(), batch_size=ROWS, epochs=20, dp_epsilon=epsilon)
    spent = private.finish(20)
    assert spent["sample_rate"] == 1
    assert spent["steps"] == 20
    assert 0.9 * epsilon < spent["epsilon"] <= epsilon
    below = NormalDist().cdf
    mu = math.sqrt(20) / spent["noise_multiplier"]
    e = spent["epsilon"]
    delta = below(mu / 2 - e / mu) - math.exp(e) * below(-mu / 2 - e / mu)
    assert delta <= spent["delta"]


def test_the_bound_holds_with_draws() -> None:
    """With Poisson sampling another accountant, of privacy loss distributions, bounds it lower."""
    from opacus.accountants import PRVAccountant

    spent = steps_of(nn.Linear(4, 1), data(1000), epochs=2, dp_epsilon=2.0).finish(2)
    other = PRVAccountant()
    other.history = [(spent["noise_multiplier"], spent["sample_rate"], spent["steps"])]
    assert spent["steps"] == 2 * 63
    assert 0.7 * spent["epsilon"] < other.get_epsilon(spent["delta"]) < spent["epsilon"] <= 2


def test_more_steps_spend_more_or_are_noisier() -> None:
    """What is spent grows with the epochs, and more of them need more noise for one bound."""
    private = steps_of(nn.Linear(4, 1), data(), epochs=10)
    longer = steps_of(nn.Linear(4, 1), data(), epochs=40)
    assert longer.noise_multiplier > private.noise_multiplier
    assert 0 < private.finish(5)["epsilon"] < longer.finish(40)["epsilon"] <= 8


def test_noise_of_the_stated_size_is_added() -> None:
    """Without any gradient, weights move by noise_multiplier x clip_norm / batch_size."""
    private = steps_of(nn.Linear(4, 1000), TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1)))
    moved = step(private, [torch.ones(3, 4), torch.zeros(3, 1000)], factor=0.0)
    wanted = private.noise_multiplier * 0.5 / 16
    assert moved.std().item() == pytest.approx(wanted, rel=0.05)
    assert abs(moved.mean().item()) < 5 * wanted / math.sqrt(moved.numel())


def test_no_row_moves_weights_further_than_the_clip() -> None:
    """A row with a gradient of a million changes the sum by clip_norm, a small one by its own."""
    private = steps_of(nn.Linear(4, 1), data())
    private.optimizer.noise_multiplier = 0.0  # type: ignore[attr-defined]  # DPOptimizer's
    x, y = torch.ones(1, 4), torch.tensor([[1e6]])
    assert step(private, [x, y]).norm().item() == pytest.approx(0.5 / 16, rel=1e-3)
    with torch.no_grad():
        near = private.model(x) + 1e-3
    small = step(private, [x, near]).norm().item()
    assert small == pytest.approx(2e-3 * math.sqrt(5) / 16, rel=1e-2)


def test_rows_are_drawn_one_by_one() -> None:
    """Each row comes with the chance stated, on its own: batches vary, and repeat no row."""
    rows = TensorDataset(torch.arange(64))
    private = steps_of(nn.Linear(4, 1), rows, batch_size=16)
    batches = [batch[0] for _ in range(50) for batch in private.loader]
    assert len(batches) == 50 * 4
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    assert sizes.mean().item() == pytest.approx(16, abs=1.5)  # its standard error is 0.25
    assert sizes.var().item() == pytest.approx(64 * 0.25 * 0.75, rel=0.5)
    assert all(len(batch.unique()) == len(batch) for batch in batches)


def test_batches_without_a_row_are_steps_too(tmp_path: Path) -> None:
    """One row a step on average: every third batch is empty, and the run goes to its end."""
    _, fitted, _ = train(tmp_path, batch_size=1, dp_epsilon=50.0)
    assert fitted.privacy is not None
    assert fitted.privacy["steps"] == 2 * ROWS
    assert all(math.isfinite(row["loss"]) for row in fitted.history)


def test_noise_is_not_the_seeds(tmp_path: Path) -> None:
    """Two runs of one seed start alike and end apart: the seed is published, noise must not be."""
    weights = []
    for name in ("a", "b"):
        torch.manual_seed(5)
        model, _, _ = train(tmp_path / name, nn.Linear(4, 1), learning_rate=0.1)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (weights[0] - weights[1]).abs().min() > 1e-4


def test_no_seed_of_32_bits_gives_the_noise() -> None:
    """A generator's state is drawn whole; manual_seed would make it of its first word alone."""
    one, other = privacy._secret_generator(), privacy._secret_generator()
    state = one.get_state()
    words = state[privacy.STATE_BEGIN : privacy.STATE_END].view(torch.int64)
    assert int(words.min()) >= 0
    assert 2**31 < int(words.max()) < 2**32
    assert len(words.unique()) == privacy.STATE_WORDS
    seeded = torch.Generator().manual_seed(int(words[0])).get_state()
    same = words == seeded[privacy.STATE_BEGIN : privacy.STATE_END].view(torch.int64)
    assert same.tolist() == [True] + [False] * (privacy.STATE_WORDS - 1)
    draws = torch.randn(4000, generator=one)
    assert draws.std().item() == pytest.approx(1, abs=0.06)
    assert not torch.equal(draws, torch.randn(4000, generator=other))


def test_a_private_run_learns_and_leaves_no_hooks(tmp_path: Path) -> None:
    """With a loose bound the loss falls; the model is a plain one afterwards."""
    model, fitted, _ = train(tmp_path, epochs=20, learning_rate=0.1, dp_epsilon=50.0, dp_clip=2.0)
    losses = [row["loss"] for row in fitted.history]
    assert losses[-1] < 0.3 * losses[0]
    assert not model._forward_hooks
    assert not model._backward_hooks
    assert set(model.state_dict()) == {"weight", "bias"}


def test_an_interrupted_run_continues_and_spends_the_same(tmp_path: Path) -> None:
    """Stopped after the second of four epochs and resumed, it has all four counted, once."""
    epochs = iter(range(9))

    def validate(_: nn.Module) -> dict[str, float]:
        if next(epochs) == 2:
            raise KeyboardInterrupt
        return {"error": 0.0}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, epochs=4, validate=validate)
    assert checkpoint.load(tmp_path / run.CHECKPOINT_FILE)["run"]["epoch"] == 2
    _, fitted, _ = train(tmp_path, epochs=4, validate=validate, resume=True)
    assert fitted.privacy is not None
    assert fitted.privacy["steps"] == 4 * 8
    assert fitted.privacy["epsilon"] <= 8


MIXING = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm without weights": lambda: nn.BatchNorm1d(4, affine=False),
    "batch norm without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "instance norm with statistics": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
}


@pytest.mark.parametrize("kind", MIXING)
def test_norms_across_rows_are_refused(tmp_path: Path, kind: str) -> None:
    """Each norm whose statistics are of a batch is named with its place, and nothing is written."""
    model = nn.Sequential(nn.Linear(4, 4), MIXING[kind](), nn.Linear(4, 1))
    with pytest.raises(UsageError, match=rf"{OTHER_ROWS_MIXED}, got \w+1d at 1, .*--norm none"):
        train(tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_group_norm_is_not_refused(tmp_path: Path) -> None:
    """Its statistics are of one row."""
    model = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(1, 4), nn.Linear(4, 1))
    _, fitted, _ = train(tmp_path, model)
    assert fitted.privacy is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dp_delta": 0.05}, "dp_delta must be below 1 / 64"),
        ({"dp_epsilon": 0.01}, "dp_epsilon must be larger for 16 steps, got 0.01"),
        ({"dp_epsilon": 0.0}, "dp_epsilon"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """A usage error names the setting; nothing is written."""
    with pytest.raises(UsageError, match=words):
        train(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_half_precision_is_refused() -> None:
    """Under autocast gradients would be rounded after they are clipped."""
    with pytest.raises(UsageError, match="precision must be float32 with dp_epsilon, got bf16"):
        steps_of(nn.Linear(4, 1), data(), precision="bf16")


def test_it_is_trained_by_one_process() -> None:
    """Each process would draw and count rows of its own."""
    with pytest.raises(UsageError, match="by one process, got 2"):
        loop._check_alone(SimpleNamespace(num_processes=2))  # type: ignore[arg-type]


def test_without_opacus_one_line_says_how_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named, and nothing is written."""
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UsageError, match=r"pip install 'marship\[private-training\]'"):
        train(tmp_path)
    assert not list(tmp_path.iterdir())


def test_evidence_has_the_bound_and_nothing_without_noise(tmp_path: Path) -> None:
    """metrics.json tells the bound; an archive gets it, and no loss or digest of training rows."""
    _, fitted, settings = train(tmp_path, validate=lambda _: {"error": 0.5})
    recipe = Recipe(name="sums", build="torch.nn:Linear")
    run.finish(settings, fitted, recipe, metrics={"error": 0.5}, arrays={})
    metrics = read_json(tmp_path / run.METRICS_FILE)
    assert metrics["privacy"] == fitted.privacy
    assert set(metrics["privacy"]) >= {
        *("epsilon", "delta", "noise_multiplier", "clip_norm", "sampling", "sample_rate", "steps"),
    }
    told = run.publishable(metrics)
    assert told["privacy"] == metrics["privacy"]
    assert "data_digest" not in told
    assert [set(row) for row in told["history"]] == [
        {"epoch", "learning_rate", "error", "seconds"}
    ] * 2
    assert "sums" not in str(told)
    open_run = {"data_digest": "sums", "history": [{"epoch": 1, "loss": 0.5}]}
    assert run.publishable(open_run) == open_run


def test_privacy_is_off_unless_asked_for() -> None:
    """Without an epsilon there is no private training."""
    assert PrivateSettings().privacy() is None
    wanted = Privacy(epsilon=2.0, delta=1e-5, clip_norm=1.0)
    assert PrivateSettings(dp_epsilon=2.0).privacy() == wanted
