"""The training loop.

    for epoch: for batch: forward, loss, zero_grad, backward, step

It runs on Hugging Face Accelerate: the same recipe trains on one CPU, on several processes
(`torchrun --nproc-per-node 2 training/regression.py`), in bf16 or fp16, and on GPUs.
A batch of `batch_size` rows is split among the processes, so the result does not depend on their
number.

A checkpoint is written before the first epoch and after each one. After Ctrl-C or SIGTERM the
checkpoint is that of the last finished epoch, and `--resume` restarts the interrupted epoch
with the same order of data and the same random numbers: the result equals that of an
uninterrupted run, bit by bit on a CPU.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from marship import console
from marship.errors import CheckpointError, TrainingError, UsageError
from marship.fit import checkpoint, run
from marship.fit.run import CHECKPOINT_FILE, Fitted, RunSettings
from marship.settings import as_dict

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
TERMINATED = 128 + signal.SIGTERM
_LOG_LINES = 10


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
        CheckpointError: `resume` finds no checkpoint, or one of another run.
        KeyboardInterrupt: Ctrl-C; the checkpoint is that of the last finished epoch.
        SystemExit: SIGTERM; likewise.
    """
    training = _Training(task, settings, accelerator)
    display = _Display(training)
    if settings.resume:
        training.resume()
    else:
        training.begin()
    with display:
        while training.epoch < settings.epochs:
            started_s = time.monotonic()
            loss = training.train(display)
            row = training.judge(loss, time.monotonic() - started_s)
            training.save()
            display.epoch(row)
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
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(
            task.model, task.optimizer, loader, task.schedule
        )
        self.weights = _copy(task.model)
        self.fitted = Fitted(task.data_digest)
        self.epoch = 0

    def train(self, display: "_Display") -> float:
        """Train one epoch; returns the mean loss over the training set."""
        self.model.train()
        total, rows = 0.0, 0
        for step, batch in enumerate(self.loader, 1):
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, batch)
            value = self._finite(loss, step)
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            if self.task.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.task.clip_norm)
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.task.model)
            size = _rows(batch)
            total, rows = total + value * size, rows + size
            display.step(self.epoch + 1, total / rows)
        sums = torch.tensor([total, rows], dtype=torch.float64, device=self.accelerator.device)
        total, count = self.accelerator.reduce(sums).tolist()
        self.epoch += 1
        return float(total / count)

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
        if len(content["run"]["random"]) != self.accelerator.num_processes:
            unequal.append("the number of processes")
        if unequal:
            raise CheckpointError(
                f"{self.path} must be of this very run to continue it, got other values of: "
                f"{', '.join(unequal)}. Give the same ones, or leave out --resume to start anew."
            )


class _Display:
    """The progress display of a run, and its signal handlers."""

    def __init__(self, training: _Training) -> None:
        self.settings = settings = training.settings
        self.is_main = training.accelerator.is_main_process
        self.bar = console.progress()
        self.bar.disable = not (self.is_main and console.err.is_terminal)
        self.training = training
        self.row = self.bar.add_task("training", total=settings.epochs * len(training.loader))
        self.metrics = ""
        self.events = run.open_events(settings) if self.is_main else None

    def __enter__(self) -> "_Display":
        self.old = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _terminate)
        done = self.training.epoch * len(self.training.loader)
        self.bar.update(self.row, completed=done)
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        signal.signal(signal.SIGTERM, self.old)
        if self.events is not None:
            self.events.close()
        if kind in (KeyboardInterrupt, SystemExit) and self.is_main:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
            console.err.print(
                f"stopped; {self.training.path} holds the last finished epoch, --resume continues.",
                soft_wrap=True,
            )

    def step(self, epoch: int, loss: float) -> None:
        """Show an optimizer step."""
        self.bar.update(self.row, advance=1, description=self._text(epoch, loss))

    def _text(self, epoch: int, loss: float) -> str:
        return f"epoch {epoch}/{self.settings.epochs} loss {loss:.4g}{self.metrics}"

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show an epoch; without a terminal a line is printed for some epochs."""
        shown = {k: v for k, v in row.items() if k not in ("epoch", "learning_rate", "seconds")}
        self.metrics = "".join(f" {k} {v:.4g}" for k, v in shown.items() if k != "loss")
        if self.events is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.events.add_scalar(name, value, int(row["epoch"]))
        number = int(row["epoch"])
        text = self._text(number, row["loss"])
        self.bar.update(self.row, description=text)
        if self.is_main and not console.err.is_terminal and self._prints(number):
            console.err.print(text, soft_wrap=True)

    def _prints(self, epoch: int) -> bool:
        every = max(1, self.settings.epochs // _LOG_LINES)
        return epoch % every == 0 or epoch == self.settings.epochs


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    sys.exit(TERMINATED)


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _rows(batch: Any) -> int:  # noqa: ANN401  whatever collate makes
    first = batch
    while not isinstance(first, torch.Tensor):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    return len(first)
