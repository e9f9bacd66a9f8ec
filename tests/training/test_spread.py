"""A table of runs that differ in their seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes import run_recipe


def run_folder(folder: Path, metrics: Any, **settings: Any) -> str:
    """A finished run with these metrics; its seed is its own."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    given = {"seed": folder.name, "run_dir": folder.name, **settings}
    (folder / "settings.json").write_text(json.dumps(given))
    return str(folder)


def test_means_and_extremes(tmp_path: Path) -> None:
    """Each cell has the mean, and the lowest and highest where runs differ."""
    rows = [{"model": {"hr@10": value, "ndcg@10": 0.5}} for value in (0.1, 0.2, 0.6)]
    folders = [run_folder(tmp_path / str(n), {"test": row}) for n, row in enumerate(rows)]
    done = run_recipe("spread", *folders)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "|  | hr@10 | ndcg@10 |",
        "| --- | --- | --- |",
        "| model | 0.300 (0.100 to 0.600) | 0.500 |",
    ]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"test": {"model": {"hr@10": 1.0}}}, "the same rows and columns"),
        ({"test": {"accuracy": 1.0}}, "rows of figures"),
        ({"loss": 1.0}, "rows of figures"),
    ],
)
def test_other_runs_are_refused(tmp_path: Path, metrics: Any, words: str) -> None:
    """Runs of another form end with one line that says what was wrong."""
    good = run_folder(tmp_path / "good", {"test": {"model": {"ndcg@10": 1.0}}})
    done = run_recipe("spread", good, run_folder(tmp_path / "other", metrics))
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_runs_with_other_settings_are_refused(tmp_path: Path) -> None:
    """A test and a validation run, say, have no mean; the settings that differ are named."""
    metrics = {"test": {"model": {"ndcg@10": 1.0}}}
    folders = [run_folder(tmp_path / name, metrics, judged=name) for name in ("test", "valid")]
    done = run_recipe("spread", *folders)
    assert done.returncode != 0
    assert "differ in judged, seed." in " ".join(done.stderr.split())


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    """A folder without metrics.json is no finished run."""
    done = run_recipe("spread", str(tmp_path))
    assert done.returncode != 0
    assert "finished run" in " ".join(done.stderr.split())
