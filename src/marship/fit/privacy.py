"""Differentially private training by DP-SGD (Abadi et al. 2016, algorithm 1).

    for step: draw each row with chance batch_size / rows; cut its gradient to clip_norm;
              add Gaussian noise to the sum; divide by batch_size; step

What all steps together may reveal of one row is bounded by epsilon and delta, counted with Renyi
differential privacy of the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019). opacus
computes the gradients of single rows, the noise and the bound.

Draws and noise come from generators that the operating system seeds. With the run's seed, which
every archive tells, anybody could draw the same noise and subtract it. So private runs of one seed
differ, and `--resume` goes on with noise of its own.
"""

import math
import secrets
import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from marship.errors import UsageError
from marship.fit.run import RunSettings
from marship.settings import setting

ACCOUNTANT = "rdp"
"""opacus's `prv` needs 5 to 7 % less noise and seconds to say so: see docs/decisions.md."""

STATE_WORDS = 624
STATE_BEGIN = 24
STATE_END = STATE_BEGIN + 8 * STATE_WORDS
"""Where PyTorch's Mersenne Twister has its words, 64 bits for each 32: ATen's
CPUGeneratorImplStateLegacy, after seed (8 bytes), left (4), seeded (4) and next (8)."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What a private run may reveal of one row.

    Attributes:
        epsilon: The bound; smaller reveals less.
        delta: The chance that the bound does not hold, below 1 / rows.
        clip_norm: The largest norm of a row's gradient.
    """

    epsilon: float
    delta: float
    clip_norm: float


@dataclass(frozen=True)
class PrivateSettings(RunSettings):
    """Settings common to recipes that can train privately."""

    dp_epsilon: float | None = setting(
        None, "train with differential privacy of this epsilon", minimum=0.01
    )
    dp_delta: float = setting(
        1e-5, "chance that epsilon does not hold, below 1 / rows", minimum=1e-12, maximum=0.1
    )
    dp_clip: float = setting(1.0, "largest norm of a row's gradient, if private", minimum=1e-6)

    def privacy(self) -> Privacy | None:
        """For `Task`; None without `dp_epsilon`."""
        if self.dp_epsilon is None:
            return None
        return Privacy(epsilon=self.dp_epsilon, delta=self.dp_delta, clip_norm=self.dp_clip)


class PrivateSteps:
    """A model, its optimizer and its rows, so that each step is one of DP-SGD.

    Args:
        model: Gets hooks that keep each row's gradient, until `finish`.
        optimizer: Of the model's parameters.
        loader: Of the training set; its rows and how they become a batch are taken over.
        privacy: The bound.
        settings: Epochs and batch size, which decide how much noise is needed.

    Raises:
        UsageError: opacus is missing, rows are not independent in the model, or the bound cannot
            be kept.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: DataLoader[Any],
        *,
        privacy: Privacy,
        settings: RunSettings,
    ) -> None:
        self._opacus = _opacus()
        count: int = len(loader.dataset)  # type: ignore[arg-type]  # PyTorch's Dataset leaves __len__ out
        _check(model, settings, privacy, count)
        self.privacy = privacy
        self.sample_rate = min(1.0, settings.batch_size / count)
        self.steps = math.ceil(count / settings.batch_size)
        self.noise_multiplier = _noise_multiplier(
            privacy, self.sample_rate, settings.epochs * self.steps
        )
        self.loader = self._poisson(loader, settings.batch_size)
        self.model = self._hooked(model)
        self.optimizer: Optimizer = self._opacus.optimizers.DPOptimizer(
            optimizer,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=privacy.clip_norm,
            expected_batch_size=min(settings.batch_size, count),
            generator=_secret_generator(),
            secure_mode=True,  # sums four draws: a single float's last bits betray what it hides
        )

    def finish(self, epochs: int) -> dict[str, Any]:
        """Remove the hooks; returns what was spent in `epochs`, for metrics.json."""
        self.model.remove_hooks()  # type: ignore[operator]  # GradSampleModule's
        accountant = self._opacus.accountants.create_accountant(ACCOUNTANT)
        accountant.history = [(self.noise_multiplier, self.sample_rate, epochs * self.steps)]
        with warnings.catch_warnings():  # of orders that could be larger: the bound holds
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(self.privacy.delta))
        return {
            "epsilon": epsilon,
            "delta": self.privacy.delta,
            "protects": "one row of the training data, added or removed",
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.privacy.clip_norm,
            "sampling": "Poisson",
            "sample_rate": self.sample_rate,
            "steps": epochs * self.steps,
            "accountant": f"opacus {self._opacus.__version__}, {ACCOUNTANT}",
        }

    def _poisson(self, loader: DataLoader[Any], batch_size: int) -> DataLoader[Any]:
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        rows, collate = loader.dataset, loader.collate_fn

        def batch(drawn: list[Any]) -> Any:  # noqa: ANN401  whatever collate makes
            return collate(drawn) if drawn else _emptied(collate([rows[0]]))

        sampler = UniformWithReplacementSampler(
            num_samples=len(rows),  # type: ignore[arg-type]  # see above
            sample_rate=self.sample_rate,
            generator=_secret_generator(),
            steps=self.steps,  # its own int(1 / rate) may lose one
        )
        sampler.batch_size = batch_size  # Accelerate asks for it
        return DataLoader(rows, batch_sampler=sampler, collate_fn=batch)

    def _hooked(self, model: nn.Module) -> nn.Module:
        # the first layer's inputs need no gradient, which opacus knows
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        try:
            hooked: nn.Module = self._opacus.GradSampleModule(model)
        except NotImplementedError as error:
            raise UsageError(
                f"the model must have a gradient for each row, got: {error}. "
                "Use other layers, or leave out --dp-epsilon."
            ) from error
        return hooked


def _opacus() -> ModuleType:
    try:
        import opacus
    except ImportError as error:
        raise UsageError(
            "opacus must be installed to train with dp_epsilon, got no such package. "
            "Run: pip install 'marship[private-training]'"
        ) from error
    return opacus  # type: ignore[no-any-return]


def _check(model: nn.Module, settings: RunSettings, privacy: Privacy, rows: int) -> None:
    """That rows meet nowhere but in the noised sum."""
    for name, part in model.named_modules():
        # opacus looks at parts with parameters only; statistics are taken by others, too
        mixes = isinstance(part, _BatchNorm) or (
            isinstance(part, _NormBase) and part.track_running_stats
        )
        if mixes:
            raise UsageError(
                f"a model trained with dp_epsilon must treat each row alone, got "
                f"{type(part).__name__} at {name}, whose statistics are of a batch. Use group norm "
                "or no norm, in this repository's recipes --norm group or --norm none."
            )
    if settings.precision != "float32":
        raise UsageError(
            f"precision must be float32 with dp_epsilon, got {settings.precision}. "
            "Leave out --precision."
        )
    if privacy.delta >= 1 / rows:
        raise UsageError(
            f"dp_delta must be below 1 / {rows}, the rows of the training data, got "
            f"{privacy.delta:g}: a model that published one row at random would keep it."
        )


@cache
def _noise_multiplier(privacy: Privacy, sample_rate: float, steps: int) -> float:
    """The least noise whose epsilon is below the bound, by a hundredth at most."""
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():  # see `finish`
            warnings.simplefilter("ignore")
            found = get_noise_multiplier(
                target_epsilon=privacy.epsilon,
                target_delta=privacy.delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=ACCOUNTANT,
            )
    except ValueError as error:
        raise UsageError(
            f"dp_epsilon must be larger for {steps} steps, got {privacy.epsilon:g}. "
            "Raise it, or lower --epochs."
        ) from error
    return float(found)


def _secret_generator() -> torch.Generator:
    """A generator on the CPU whose whole state the operating system has drawn.

    `manual_seed` takes 32 bits of what it is given, which can be tried one by one.
    """
    generator = torch.Generator()
    state = generator.get_state()
    words = [secrets.randbits(32) for _ in range(STATE_WORDS)]
    state[STATE_BEGIN:STATE_END] = torch.tensor(words, dtype=torch.int64).view(torch.uint8)
    return generator.set_state(state)


def _emptied(batch: Any) -> Any:  # noqa: ANN401  whatever collate makes
    """A batch without its rows."""
    if isinstance(batch, torch.Tensor):
        return batch[:0]
    if isinstance(batch, dict):
        return {name: _emptied(part) for name, part in batch.items()}
    return [_emptied(part) for part in batch]
