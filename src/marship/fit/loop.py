"""The training loop.

    for epoch: for batch: forward, loss, zero_grad, backward, step

It runs on Hugging Face Accelerate: the same recipe trains on one CPU, on several processes
(`torchrun --nproc-per-node 2 training/regression.py`) of one host or of several, in bf16 or fp16,
and on GPUs. A batch of `batch_size` rows is split among the processes, so the result does not
depend on their number.

A checkpoint is written before the first epoch and after each one. After Ctrl-C or SIGTERM the
checkpoint is that of the last finished epoch, and `--resume` restarts the interrupted epoch
with the same order of data and the same random numbers: the result equals that of an
uninterrupted run, bit by bit on a CPU. A private run differs each time: see
`marship.fit.privacy`.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from marship.errors import CheckpointError, TrainingError, UsageError
from marship.fit import checkpoint, run
from marship.fit.display import Display
from marship.fit.privacy import Privacy, PrivateSteps
from marship.fit.run import CHECKPOINT_FILE, Fitted, RunSettings
from marship.settings import as_dict

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training task, as defined by a recipe: model, data, loss and validation.

    Attributes:
        model: Trained in place; left in eval mode with the chosen weights.
        train: The training set; its rows are shuffled every epoch.
        loss: `loss(model, batch)` is the mean loss of a batch, a scalar. It must call the
            model itself, not its methods: with several processes it is wrapped.
        optimizer: The optimizer of the model's parameters.
        data_digest: A digest of the data; a run is only resumed on the same data.
        schedule: The learning-rate schedule, stepped after every optimizer step; see `steps`.
        clip_norm: The maximum gradient norm.
        average: Decay of an exponential moving average of the weights; if given, the average is
            validated and kept.
        validate: `validate(model)` returns metrics by name, after every epoch.
        metric: The metric that decides which epoch's weights are kept; None keeps the last.
        greater_is_better: Whether a greater `metric` is better.
        collate: Makes a batch from a list of rows, for `DataLoader`.
        privacy: If given, training is differentially private. `loss` must then be the mean of
            losses of which each depends on one row; `clip_norm` has no effect.
    """

    model: nn.Module
    train: Dataset[Any]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    optimizer: Optimizer
    data_digest: str
    schedule: LRScheduler | None = None
    clip_norm: float | None = None
    average: float | None = None
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    metric: str | None = None
    greater_is_better: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    privacy: Privacy | None = None


def start(settings: RunSettings) -> Accelerator:
    """Set threads and seeds, and initialize distributed training if there are other processes.

    Call it before the model is built, as its initial weights depend on the seed.

    Raises:
        UsageError: The precision is unknown or unsupported on this device, or the batch cannot
            be split evenly.
    """
    if settings.precision not in PRECISIONS:
        raise UsageError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {settings.precision!r}."
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # a slow debugging aid of deterministic mode
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its module's class

    has_device = torch.accelerator.is_available()
    if settings.precision == "fp16" and not has_device:  # Accelerate would silently use float32
        raise UsageError("precision must be float32 or bf16 on a CPU, got fp16.")
    accelerator = Accelerator(
        cpu=not has_device,  # otherwise Accelerate uses a single process on a CPU
        mixed_precision=PRECISIONS[settings.precision],
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    if settings.batch_size % accelerator.num_processes:
        raise UsageError(
            f"batch_size must be a multiple of the {accelerator.num_processes} processes, "
            f"got {settings.batch_size}."
        )
    set_seed(settings.seed)
    return accelerator


def steps(settings: RunSettings, train: Dataset[Any]) -> int:
    """The number of optimizer steps of a run, for a learning-rate schedule."""
    rows: int = len(train)  # type: ignore[arg-type]  # PyTorch's Dataset leaves __len__ out
    return settings.epochs * math.ceil(rows / settings.batch_size)


def warmup_cosine(optimizer: Optimizer, *, warmup: int, total: int, floor: float = 0.0) -> LambdaLR:
    """Linear warmup over `warmup` steps, then cosine decay to the share `floor` at `total`.

    Loshchilov and Hutter 2017, SGDR, equation 5 with one period.
    """

    def factor(step: int) -> float:
        share = min(1.0, max(0, step - warmup) / max(1, total - warmup))
        wave = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        return min(1.0, (step + 1) / max(1, warmup)) * wave

    return LambdaLR(optimizer, factor)


def fit(task: Task, settings: RunSettings, accelerator: Accelerator) -> Fitted:
    """Train `task.model`, and load the chosen weights into it.

    Writes settings.json and checkpoint.pt into `run_dir`; `run.finish` writes the rest.

    Raises:
        TrainingError: The loss is not finite.
        UsageError: The task cannot be trained privately, or not by several processes.
        CheckpointError: `resume` finds no checkpoint, or one of another run.
        KeyboardInterrupt: Ctrl-C; the checkpoint is that of the last finished epoch.
        SystemExit: SIGTERM; likewise.
    """
    training = _Training(task, settings, accelerator)
    display = Display(settings, len(training.loader), accelerator)
    if settings.resume:
        training.resume()
    else:
        training.begin()
    display.skip(training.epoch)
    with display:
        while training.epoch < settings.epochs:
            started_s = time.monotonic()
            loss = training.train(display)
            row = training.judge(loss, time.monotonic() - started_s)
            training.save()
            display.epoch(row)
    if training.private is not None:
        training.fitted.privacy = training.private.finish(training.epoch)
    weights, fitted = broadcast_object_list([training.weights, training.fitted])
    accelerator.unwrap_model(training.model, keep_fp32_wrapper=False)  # outputs are float32 again
    task.model.load_state_dict(weights)
    task.model.eval()
    return cast("Fitted", fitted)


class _Training:
    """A running task: its objects prepared by Accelerate, and its checkpoint state."""

    def __init__(self, task: Task, settings: RunSettings, accelerator: Accelerator) -> None:
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.path = settings.run_dir / CHECKPOINT_FILE
        self.order = torch.Generator().manual_seed(settings.seed)
        loader = DataLoader(
            task.train,
            settings.batch_size,
            shuffle=True,
            generator=self.order,
            collate_fn=task.collate,
        )
        self.average: AveragedModel | None = None
        if task.average is not None:  # before `prepare`: autocast's wrapper must not be copied
            decay = get_ema_multi_avg_fn(task.average)  # type: ignore[no-untyped-call]  # PyTorch's own lack
            self.average = AveragedModel(task.model, multi_avg_fn=decay, use_buffers=True)
            self.average.to(accelerator.device)
        model, optimizer = task.model, task.optimizer
        self.private: PrivateSteps | None = None
        if task.privacy is not None:
            _check_alone(accelerator)
            self.private = PrivateSteps(
                model, optimizer, loader, privacy=task.privacy, settings=settings
            )
            model, optimizer = self.private.model, self.private.optimizer
            loader = self.private.loader
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(
            model, optimizer, loader, task.schedule
        )
        self.weights = _copy(task.model)
        self.fitted = Fitted(task.data_digest)
        self.epoch = 0

    def train(self, display: Display) -> float:
        """Train one epoch; returns the mean loss over the training set."""
        self.model.train()
        total, rows = 0.0, 0
        for step, batch in enumerate(self.loader, 1):
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, batch)
            size = _rows(batch)
            value = self._finite(loss, step) if size else 0.0  # a private batch may be empty
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            if self.task.clip_norm is not None and self.private is None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.task.clip_norm)
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.task.model)
            total, rows = total + value * size, rows + size
            display.step(self.epoch + 1, total / max(1, rows))
        sums = torch.tensor([total, rows], dtype=torch.float64, device=self.accelerator.device)
        total, count = self.accelerator.reduce(sums).tolist()
        self.epoch += 1
        return float(total / max(1, count))

    def _finite(self, loss: torch.Tensor, step: int) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss must be a finite number, got {value} at epoch {self.epoch + 1}, step "
                f"{step}. Lower learning_rate, clip gradients, or look for bad values in the data."
            )
        return value

    def judge(self, loss: float, seconds: float) -> dict[str, float]:
        """Validate, keep the weights if they are the best, and record the epoch."""
        row: dict[str, float] = {"epoch": self.epoch, "loss": loss}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        candidate: nn.Module = self.average.module if self.average else self.task.model
        if self.task.validate is not None and self.accelerator.is_main_process:
            candidate.eval()
            with torch.no_grad():
                row |= self.task.validate(candidate)
        row["seconds"] = round(seconds, 3)
        self.fitted.history.append(row)
        if self._is_best(row):
            self.fitted.best_epoch = self.epoch
            self.weights = _copy(candidate)
        return row

    def _is_best(self, row: Mapping[str, float]) -> bool:
        metric, best = self.task.metric, self.fitted.best_epoch
        if metric is None or best == 0 or not self.accelerator.is_main_process:
            return True
        old = self.fitted.history[best - 1][metric]
        return row[metric] > old if self.task.greater_is_better else row[metric] < old

    def begin(self) -> None:
        """Start a new run."""
        set_seed(self.settings.seed, device_specific=True)  # different dropout in each process
        if self.accelerator.is_main_process:
            run.begin(self.settings)
        self.save()

    def save(self) -> None:
        """Write the checkpoint; called by all processes, the first one writes."""
        states, scaler = gather_object([checkpoint.random_states()]), self.accelerator.scaler
        if not self.accelerator.is_main_process:
            return
        checkpoint.save(
            self.path,
            {
                "weights": self.weights,
                "settings": as_dict(self.settings),
                "data": self.task.data_digest,
                "run": {
                    "epoch": self.epoch,
                    "history": self.fitted.history,
                    "best_epoch": self.fitted.best_epoch,
                    "model": self.task.model.state_dict(),
                    "average": self.average.state_dict() if self.average else None,
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict() if self.schedule else None,
                    "scaler": scaler.state_dict() if scaler else None,
                    "order": self.order.get_state(),
                    "random": states,
                },
            },
        )

    def resume(self) -> None:
        """Continue from the checkpoint in the run folder.

        Raises:
            CheckpointError: There is no checkpoint, or it is of another run.
        """
        content = checkpoint.load(self.path)
        state = content["run"]
        self._check_same(content)
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.weights = state["epoch"], content["weights"]
        self.fitted = Fitted(content["data"], state["history"], state["best_epoch"])
        self.order.set_state(state["order"])
        checkpoint.restore_random_states(state["random"][self.accelerator.process_index])

    def _check_same(self, content: Mapping[str, Any]) -> None:
        old = run.influential(content["settings"])
        new = run.influential(as_dict(self.settings))
        unequal = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        if content["data"] != self.task.data_digest:
            unequal.append("the data")
        processes, now = len(content["run"]["random"]), self.accelerator.num_processes
        if processes != now:
            unequal.append(f"the number of processes ({processes}, now {now})")
        if unequal:
            raise CheckpointError(
                f"{self.path} must be of this very run to continue it, got other values of: "
                f"{', '.join(unequal)}. Give the same ones, or leave out --resume to start anew."
            )


def _check_alone(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        raise UsageError(
            f"dp_epsilon must be trained by one process, got {accelerator.num_processes}. "
            "Start it without torchrun."
        )


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _rows(batch: Any) -> int:  # noqa: ANN401  whatever collate makes
    first = batch
    while not isinstance(first, torch.Tensor):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    return len(first)
