"""The recommender: its model, its loss, its figures and its run folder."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from marship.errors import DataError, MarshipError, UsageError
from marship.fit.checkpoint import load_weights
from marship.fit.recipe import Recipe, resolve
from recipes import REPOSITORY

SIZES = ("width", "blocks", "heads", "dropout", "ease")


@pytest.fixture(scope="module")
def model(recommend: ModuleType) -> nn.Module:
    """A small recommender with random weights and facts."""
    torch.manual_seed(0)
    built: nn.Module = recommend.build(width=8, blocks=2, heads=2, dropout=0.5, ease=1.0)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    built.get_buffer("facts").uniform_()
    built.get_buffer("together")[1:, 1:].normal_()
    return built.eval()


def history(length: int, seed: int = 0, batch: int = 3) -> tuple[torch.Tensor, ...]:
    """Random inputs without padding."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(1, 1683, (batch, length), generator=draw)
    ratings = torch.randint(0, 6, (batch, length), generator=draw).float()
    times = 880_000_000 + torch.randint(0, 10**6, (batch, length), generator=draw).cumsum(1)
    return items, ratings, times


def scores(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The model's answer."""
    with torch.no_grad():
        found: torch.Tensor = model(*inputs)["scores"]
    return found


def added(model: nn.Module, items: torch.Tensor) -> torch.Tensor:
    """What the items of histories add to every score, whatever their order."""
    together = model.get_buffer("together")
    return torch.stack([together[row.unique()].sum(0) for row in items])


def test_without_ease_there_is_no_table(recommend: ModuleType, model: nn.Module) -> None:
    """The network alone gives the scores less what the items of the history add."""
    alone = recommend.build(width=8, blocks=2, heads=2, dropout=0.5, ease=0.0).eval()
    weights = {k: v for k, v in model.state_dict().items() if k != "together"}
    alone.load_state_dict(weights)
    inputs = history(20)
    expected = scores(model, inputs) - added(model, inputs[0])
    torch.testing.assert_close(scores(alone, inputs), expected)


@pytest.mark.parametrize("fill", [1, 7, 60])
def test_filling_up_changes_nothing(model: nn.Module, fill: int) -> None:
    """A history filled up with zeros on its right gets the same scores."""
    inputs = history(20)
    filled = tuple(nn.functional.pad(part, (0, fill)) for part in inputs)
    torch.testing.assert_close(scores(model, filled), scores(model, inputs), rtol=0, atol=1e-5)


def test_order_ratings_and_times_matter(model: nn.Module) -> None:
    """Another order, other ratings and other times change the scores; padding never wins."""
    items, ratings, times = history(20)
    plain = scores(model, (items, ratings, times))
    assert plain.shape == (3, 1683)
    assert (plain[:, 0] < plain[:, 1:].min()).all()
    for changed in [
        (items.flip(1), ratings, times),
        (items, 5 - ratings, times),
        (items, ratings, times + 10 * 604_800),
    ]:
        assert not torch.allclose(scores(model, changed), plain, atol=1e-3)


def test_odd_ratings_and_times_are_taken_as_the_nearest(model: nn.Module) -> None:
    """Ratings outside 1 to 5 and times outside the data's count as the nearest that are known."""
    items, ratings, times = history(20)
    late = 2_000_000_000 - times[:, -1:]
    torch.testing.assert_close(
        scores(model, (items, ratings + 9, times + late)),
        scores(model, (items, torch.full_like(ratings, 5), times + late + 604_800)),
    )


def test_outputs_at_every_event_are_those_of_the_shorter_history(model: nn.Module) -> None:
    """What training asks for at an event is what serving answers when it is the last one."""
    inputs = history(12)
    at = torch.zeros(3, 12, dtype=torch.bool)
    at[:, 6] = True
    with torch.no_grad():
        found = model(*inputs, at=at)["scores"] + added(model, inputs[0][:, :7])
    shorter = scores(model, tuple(part[:, :7] for part in inputs))
    torch.testing.assert_close(found[:, 1:], shorter[:, 1:])


def test_it_exports_with_free_batch_and_length(model: nn.Module, tmp_path: Path) -> None:
    """ONNX Runtime agrees with PyTorch at several batch sizes and lengths, 1 and 100 included."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=1, max=100)}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        history(20),
        path,
        input_names=["items", "ratings", "times"],
        output_names=["scores"],
        dynamic_shapes={"items": axes, "ratings": axes, "times": axes},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    for batch, length in [(1, 1), (2, 5), (7, 100)]:
        inputs = history(length, seed=length, batch=batch)
        fed = {
            spec.name: part.numpy() for spec, part in zip(session.get_inputs(), inputs, strict=True)
        }
        (got,) = session.run(["scores"], fed)
        np.testing.assert_allclose(got, scores(model, inputs).numpy(), rtol=1e-3, atol=1e-4)


def test_the_loss_is_cross_entropy_among_the_unseen(
    recommend: ModuleType, model: nn.Module
) -> None:
    """At each event, the loss is that of a softmax over items not seen so far, worked by hand."""
    items, ratings, times = history(6, batch=2)
    following = items.roll(-1, 1)
    following[:, -1] = torch.tensor([1, 0])  # the second row has no event after its last
    earlier = torch.zeros(2, 1683, dtype=torch.bool)
    earlier[0, 1500:1600] = True
    following[earlier.gather(1, following)] = 2
    names = ("items", "ratings", "times", "next", "earlier")
    batch = dict(zip(names, (items, ratings, times, following, earlier), strict=True))
    smoothing, by_hand = 0.1, []
    for row in range(2):
        for place in range(6 if row == 0 else 5):
            part = tuple(x[row : row + 1, : place + 1] for x in (items, ratings, times))
            free = ~earlier[row]
            free[items[row, : place + 1]] = False
            free[0] = False
            network = scores(model, part) - added(model, part[0])
            logs = network[0][free].log_softmax(0)
            near = -logs[free[: following[row, place]].sum()]
            by_hand.append((1 - smoothing) * near + smoothing * -logs.mean())
    with torch.no_grad():
        found = recommend.make_loss(smoothing)(model, batch)
    torch.testing.assert_close(found, torch.stack(by_hand).mean(), rtol=1e-4, atol=1e-4)


def test_windows_cover_and_mix(movielens: ModuleType) -> None:
    """A stretch is at most 101 events in order of time; ties are mixed, long histories moved in."""
    times = np.repeat(np.arange(1, 61), 3)
    items = np.arange(1, 181)
    person = movielens.History(items, np.ones(180, np.float32), times)
    windows = movielens.RandomWindows([person], unknown=0.5)
    drawn = [windows[0] for _ in range(30)]
    for part in drawn:
        assert len(part["items"]) == 100
        assert (np.diff((part["items"] - 1) // 3) >= 0).all()
        assert (part["items"][1:] == part["next"][:-1]).all()
        assert part["earlier"].sum() + 101 <= 180
    assert len({tuple(part["items"]) for part in drawn}) > 20
    assert {bool(part["times"].any()) for part in drawn} == {True, False}
    assert {bool(part["ratings"].any()) for part in drawn} == {True, False}


def test_the_event_before_the_judged_one_can_be_skipped(
    recommend: ModuleType, movielens: ModuleType, mini: Path
) -> None:
    """With --skip-latest training ends one event earlier; what is judged stays."""
    histories = movielens.read_histories(mini)
    for name in ("last", "time"):
        settings = recommend.Settings(split=name)
        whole = recommend.split_of(histories, settings)
        less = recommend.split_of(histories, replace(settings, skip_latest=True))
        assert [h.items.tolist() for h in less.judged] == [h.items.tolist() for h in whole.judged]
        for short, long in zip(less.train, whole.train, strict=True):
            assert (short.items == long.items[:-1]).all()


def test_it_learns_what_follows(recommend_run: Path) -> None:
    """On people who walk round a ring, the next item is found far more often than by popularity."""
    results = json.loads((recommend_run / "metrics.json").read_text())["test"]
    assert results["model"]["ndcg@10"] > 2 * results["popularity"]["ndcg@10"]
    assert results["model"]["hr@10"] > 0.7


def test_its_run_folder_gives_its_figures_again(recommend_run: Path) -> None:
    """Built, loaded and judged from the folder alone, the model has the figures of metrics.json."""
    recipe = Recipe.load(recommend_run)
    settings = json.loads((recommend_run / "settings.json").read_text())
    build = resolve(str(REPOSITORY / recipe.build))
    model = build(**{name: settings[name] for name in SIZES})
    load_weights(recommend_run / "checkpoint.pt", model)
    heldout = np.load(recommend_run / "heldout.npz")
    inputs = tuple(torch.from_numpy(heldout[name]) for name in ("items", "ratings", "times"))
    assert recipe.judge is not None
    got = resolve(str(REPOSITORY / recipe.judge))(
        {"scores": scores(model.eval(), inputs).numpy()},
        {name: heldout[f"target/{name}"] for name in ("item", "seen")},
    )
    metrics = json.loads((recommend_run / "metrics.json").read_text())
    told = metrics["test"]["model"]
    assert got == pytest.approx({name: told[name] for name in got}, abs=1e-6)


def test_its_files_are_those_that_later_steps_read(recommend_run: Path) -> None:
    """The folder holds the files of marship.fit.recipe's list, titles and a request to try."""
    assert {path.name for path in recommend_run.iterdir()} == {
        *("settings.json", "checkpoint.pt", "metrics.json", "curve.png", "recipe.json"),
        *("examples.npz", "calibration.npz", "heldout.npz", "items.json", "request.json"),
        "golden_request.json",
    }
    recipe = Recipe.load(recommend_run)
    assert recipe.bounds == {"length": (1, 100)}
    assert recipe.requests == ("golden_request.json",)
    golden = json.loads((recommend_run / "golden_request.json").read_text())
    assert golden == {"history": [1, 2, 3], "k": 3}  # nobody's: it goes into the archive
    assert recipe.pad_values == {"items": 0, "ratings": 0, "times": 0}
    items: dict[str, Any] = json.loads((recommend_run / "items.json").read_text())
    assert set(items) == {str(item) for item in range(1, 1683)}
    assert items["1"]["title"] == "Film 1 (1921)"
    examples = np.load(recommend_run / "examples.npz")
    assert {name: examples[name].dtype.name for name in examples} == {
        "items": "int64",
        "ratings": "float32",
        "times": "int64",
    }
    request = json.loads((recommend_run / "request.json").read_text())
    assert len(request["history"]) == len(request["ratings"]) == len(request["times"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": "week"}, UsageError("split must be one of last, time")),
        ({"judged": "all"}, UsageError("judged must be one of test, valid")),
        ({"width": 9}, UsageError("width must be a multiple of heads")),
        ({"data_dir": Path("none")}, DataError("must hold ml-100k.inter and ml-100k.item")),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    recommend: ModuleType, mini: Path, changes: dict[str, Any], expected: MarshipError
) -> None:
    """Such a setting ends with an error that names it, and without a run folder."""
    run_dir = mini / "run"
    given = {"run_dir": run_dir, "data_dir": mini, **changes}
    with pytest.raises(type(expected), match=str(expected)):
        recommend.main.__wrapped__(settings=recommend.Settings(**given))
    assert not run_dir.exists()
