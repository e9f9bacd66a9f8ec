"""The training loop, as a library and as a process that is stopped and continued."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_recipe
from forked import Forked
from marship.errors import CheckpointError, TrainingError, UsageError
from marship.fit import checkpoint, run
from marship.fit import loop as fit
from namespaces import run_apart

pytestmark = pytest.mark.slow

RECIPE = Path(tiny_recipe.__file__)
DEADLINE_S = 60
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TWO_HOSTS = """
unshare --net sleep 300 &  # holds the other host's network; it is ended below
other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do true; done
there="nsenter --target $other --net"
set -e
ip link add left type veth peer name right netns $other
ip address add 10.77.0.1/24 dev left
$there ip address add 10.77.0.2/24 dev right
for link in lo left; do ip link set $link up; done
for link in lo right; do $there ip link set $link up; done
rendezvous="--nnodes 2 --nproc-per-node 1 --rdzv-id tiny --rdzv-backend c10d"
rendezvous="$rendezvous --rdzv-endpoint 10.77.0.1:29400"
GLOO_SOCKET_IFNAME=right $there $0 $rendezvous --rdzv-conf is_host=0 --local-addr 10.77.0.2 "$@" &
second=$!
GLOO_SOCKET_IFNAME=left $0 $rendezvous --rdzv-conf is_host=1 --local-addr 10.77.0.1 "$@"
wait $second
"""
"""A cable between two network namespaces, and torchrun in each, which meet by its rendezvous."""


def train(run_dir: Path, **changes: Any) -> tuple[fit.Task, run.Fitted]:
    """One run in this process."""
    settings = tiny_recipe.Settings(run_dir=run_dir, **changes)
    accelerator = fit.start(settings)
    task = tiny_recipe.make_task(settings)
    return task, fit.fit(task, settings, accelerator)


def started(run_dir: Path, *flags: str, **environment: str) -> Forked:
    """The tiny recipe as a process of its own."""
    return Forked(str(RECIPE), "--run-dir", str(run_dir), *flags, **environment)


def run_to_end(run_dir: Path, *flags: str) -> None:
    """The same, until it is done."""
    with started(run_dir, *flags) as process:
        done = process.wait(DEADLINE_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run with default settings."""
    folder = tmp_path_factory.mktemp("whole")
    run_to_end(folder)
    return folder


@pytest.fixture(scope="module")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run under bf16."""
    folder = tmp_path_factory.mktemp("half")
    run_to_end(folder, "--precision", "bf16")
    return folder


def names_in(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


def same(left: Any, right: Any) -> bool:
    """Whether two nested values are equal, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint less what differs between two equal runs: folders and seconds."""
    history = [
        {k: v for k, v in row.items() if k != "seconds"} for row in content["run"]["history"]
    ]
    settings = run.influential(content["settings"])
    return {**content, "run": {**content["run"], "history": history}, "settings": settings}


def checkpoint_of(run_dir: Path) -> dict[str, Any]:
    """A run's checkpoint, to compare with another's."""
    return without_times(checkpoint.load(run_dir / run.CHECKPOINT_FILE))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Twenty epochs on a sum of features bring the loss far down, and history has each."""
    _, fitted = train(tmp_path, epochs=20, learning_rate=0.05, dropout=0.0)
    losses = [row["loss"] for row in fitted.history]
    assert len(losses) == 20
    assert losses[-1] < 0.1 * losses[0]


def test_the_loss_is_the_mean_over_the_training_set(tmp_path: Path) -> None:
    """With a learning rate of 0, an epoch's loss is the mean over all rows, ragged batch or not."""
    task, fitted = train(tmp_path, epochs=1, learning_rate=0.0, dropout=0.0, batch_size=24)
    x, y = tiny_recipe.make_data().tensors
    whole = nn.functional.mse_loss(task.model(x), y).item()
    assert fitted.history[0]["loss"] == pytest.approx(whole, rel=1e-5)


def test_equal_seeds_give_equal_runs(tmp_path: Path) -> None:
    """Two runs of one seed end bitwise equal in everything; another seed's does not."""
    train(tmp_path / "a")
    train(tmp_path / "b")
    train(tmp_path / "c", seed=2)
    assert same(checkpoint_of(tmp_path / "a"), checkpoint_of(tmp_path / "b"))
    assert not same(
        checkpoint_of(tmp_path / "a")["weights"], checkpoint_of(tmp_path / "c")["weights"]
    )


def test_the_best_epochs_weights_are_kept(tmp_path: Path) -> None:
    """The model ends with the weights of the epoch whose validation metric was best."""
    task, fitted = train(tmp_path, epochs=12, learning_rate=0.5)
    errors = [row["error"] for row in fitted.history]
    assert fitted.best_epoch == 1 + errors.index(min(errors))
    assert task.validate is not None
    assert task.validate(task.model)["error"] == pytest.approx(min(errors))
    assert not task.model.training


def test_warmup_cosine_rises_and_falls() -> None:
    """The rate grows to its full value over the warm-up and ends at the floor."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = fit.warmup_cosine(optimizer, warmup=4, total=20, floor=0.1)
    rates = []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[12] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, whole_run: Path, number: signal.Signals, code: int
) -> None:
    """Stopped in the middle of an epoch and resumed, a run ends bitwise as if never stopped."""
    with started(tmp_path, TINY_HOLD_AT="12") as process:  # of eight steps an epoch
        process.wait_for("holding")
        process.send_signal(number)
        done = process.wait(DEADLINE_S)
    assert done.returncode == code, done.stderr
    assert "--resume continues" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint_of(tmp_path)["run"]["epoch"] == 1

    run_to_end(tmp_path, "--resume")
    assert same(checkpoint_of(tmp_path), checkpoint_of(whole_run))


def test_a_second_ctrl_c_is_honoured_at_once(tmp_path: Path) -> None:
    """While the first Ctrl-C hangs in a clean-up, the second ends the process."""
    with started(tmp_path, "--stubborn", TINY_HOLD_AT="4") as process:
        process.wait_for("holding")
        process.send_signal(signal.SIGINT)
        process.wait_for("hanging")
        process.send_signal(signal.SIGINT)
        assert process.wait(5).returncode == -signal.SIGINT
    checkpoint.load(tmp_path / run.CHECKPOINT_FILE)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """A target that is no number stops at its step, with epoch and step named."""
    with pytest.raises(TrainingError, match=r"got nan at epoch 1, step [1-8]\."):
        train(tmp_path, bad_row=3)
    assert checkpoint_of(tmp_path)["run"]["epoch"] == 0


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The tiny recipe without dropout in two processes on one host; its last argument is a flag."""
    folder = tmp_path_factory.mktemp("two")
    return subprocess.run(
        [
            *(*TORCHRUN, "--standalone", "--nproc-per-node=2"),
            *(RECIPE, "--run-dir", folder, "--dropout", "0"),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_S,
    )


def test_two_processes_learn_what_one_learns(
    tmp_path: Path, pair_run: subprocess.CompletedProcess[str]
) -> None:
    """Run by torchrun, two processes over gloo agree, come close to one, and one writes."""
    train(tmp_path / "one", dropout=0.0)
    done = pair_run
    assert done.returncode == 0, done.stderr
    ranks = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert set(ranks) == {"0", "1"}
    assert ranks["0"] == ranks["1"]
    assert done.stderr.count("epoch 4/4") == 1
    two, one = checkpoint_of(done.args[-3]), checkpoint_of(tmp_path / "one")
    assert len(two["run"]["random"]) == 2
    for name, value in one["weights"].items():
        if "norm" not in name:  # its statistics are of half a batch
            torch.testing.assert_close(two["weights"][name], value, rtol=0, atol=2e-3)
    losses = [[row["loss"] for row in part["run"]["history"]] for part in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_two_hosts_learn_what_two_processes_of_one_learn(
    tmp_path: Path, pair_run: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a network, torchrun's rendezvous gives the same checkpoint, bit by bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = (" ".join(TORCHRUN), RECIPE, "--run-dir", tmp_path, "--dropout", "0")
    done = run_apart(TWO_HOSTS, *words, also=["--net"])
    assert done.returncode == 0, done.stderr
    assert same(checkpoint_of(tmp_path), checkpoint_of(pair_run.args[-3]))


def test_a_run_of_two_processes_is_not_resumed_by_one(
    pair_run: subprocess.CompletedProcess[str],
) -> None:
    """Both numbers are told; each process has random states of its own, and a part of a batch."""
    with pytest.raises(CheckpointError, match=r"the number of processes \(2, now 1\)"):
        train(pair_run.args[-3], dropout=0.0, resume=True)


def test_autocast_trains_and_keeps_float32_weights(half_run: Path, whole_run: Path) -> None:
    """Under bf16 the loss differs from float32's a little, and weights stay float32."""
    full, half = checkpoint_of(whole_run), checkpoint_of(half_run)
    losses = [content["run"]["history"][0]["loss"] for content in (full, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert half["weights"]["out.weight"].dtype == torch.float32


def test_what_is_validated_is_what_is_kept(half_run: Path) -> None:
    """Under bf16 too, the kept average alone gives the error that its epoch was validated with."""
    content = checkpoint_of(half_run)
    model, (x, y) = tiny_recipe.Tiny(0.3).eval(), tiny_recipe.make_data().tensors
    model.load_state_dict(content["weights"])
    with torch.no_grad():
        error = nn.functional.mse_loss(model(x), y).item()
    row = content["run"]["history"][content["run"]["best_epoch"] - 1]
    assert error == pytest.approx(row["error"], rel=1e-5)


def test_an_unknown_precision_is_a_usage_error(tmp_path: Path) -> None:
    """An unknown precision, and fp16 on a CPU, are refused: code 2, one line, no files."""
    with started(tmp_path / "run", "--precision", "int3") as process:
        done = process.wait(DEADLINE_S)
    assert done.returncode == 2
    assert "precision must be one of float32, bf16, fp16, got 'int3'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    if not torch.accelerator.is_available():
        with pytest.raises(UsageError, match="bf16"):
            fit.start(tiny_recipe.Settings(precision="fp16"))


def test_resume_needs_the_same_run(tmp_path: Path) -> None:
    """Other settings or other data are refused by name; without a checkpoint there is none."""
    with pytest.raises(CheckpointError, match="no such file"):
        train(tmp_path, resume=True)
    train(tmp_path)
    with pytest.raises(CheckpointError, match="dropout, learning_rate"):
        train(tmp_path, resume=True, dropout=0.1, learning_rate=0.1)
    settings = tiny_recipe.Settings(run_dir=tmp_path, resume=True)
    accelerator = fit.start(settings)
    task = replace(tiny_recipe.make_task(settings), data_digest="other")
    with pytest.raises(CheckpointError, match="the data"):
        fit.fit(task, settings, accelerator)


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command twice trains once and says so; --again and other settings train."""

    def command(**changes: Any) -> tuple[str, int]:
        tiny_recipe.main.__wrapped__(settings=tiny_recipe.Settings(run_dir=tmp_path, **changes))
        return capsys.readouterr().out, (tmp_path / run.METRICS_FILE).stat().st_mtime_ns

    _, first = command()
    out, second = command(threads=1)
    assert "holds this run already" in out
    assert out.count("\n") == 1
    assert second == first
    _, third = command(again=True)
    assert third > first
    out, fourth = command(seed=5)
    assert "holds this run" not in out
    assert fourth > third


def test_a_new_run_takes_the_old_ones_word_back(tmp_path: Path) -> None:
    """A run that fails leaves no metrics.json or recipe.json of the one before it."""
    tiny_recipe.main.__wrapped__(settings=tiny_recipe.Settings(run_dir=tmp_path))
    assert {"metrics.json", "recipe.json"} <= names_in(tmp_path)
    with pytest.raises(TrainingError):
        train(tmp_path, bad_row=0)
    assert not {"metrics.json", "recipe.json"} & names_in(tmp_path)


def test_metrics_tell_the_history(whole_run: Path) -> None:
    """metrics.json has a row for each epoch with loss, rate, metric and time."""
    metrics = json.loads((whole_run / run.METRICS_FILE).read_text())
    assert [row["epoch"] for row in metrics["history"]] == [1, 2, 3, 4]
    assert set(metrics["history"][0]) == {"epoch", "loss", "learning_rate", "error", "seconds"}
    assert metrics["data_digest"] == "tiny"
    assert (whole_run / run.CURVE_FILE).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    """With --tensorboard, the events hold loss and metric for every epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, fitted = train(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / run.EVENTS_DIR))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([row["loss"] for row in fitted.history])
    assert [event.step for event in events.Scalars("error")] == [1, 2, 3, 4]


def test_missing_tensorboard_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package is missing, the error says what to install."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install"):
        train(tmp_path, tensorboard=True)
    assert not names_in(tmp_path)
