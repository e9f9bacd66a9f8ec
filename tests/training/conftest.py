"""The recipes as modules, and run folders that many tests look into."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from marship.fit.recipe import resolve
from mini_movielens import write_mini
from recipes import REPOSITORY, run_recipe


@pytest.fixture(scope="session")
def recommend() -> ModuleType:
    """training/recommend.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/recommend.py:build")).__module__]


@pytest.fixture(scope="session")
def movielens(recommend: ModuleType) -> ModuleType:
    """training/movielens.py, as recommend.py knows it."""
    module: ModuleType = recommend.movielens
    return module


@pytest.fixture(scope="session")
def ranking(recommend: ModuleType) -> ModuleType:
    """training/ranking.py, likewise."""
    module: ModuleType = recommend.ranking
    return module


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small MovieLens-100k."""
    return write_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def recommend_run(tmp_path_factory: pytest.TempPathFactory, mini: Path) -> Path:
    """The run folder of a small recommender, trained on it."""
    folder = tmp_path_factory.mktemp("recommend")
    flags = ["--run-dir", str(folder), "--data-dir", str(mini), "--epochs", "15", "--width", "16"]
    quick = ["--learning-rate", "0.03", "--average", "0.5", "--dropout", "0"]
    done = run_recipe("recommend", *flags, *quick)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of training/regression.py as it stands."""
    folder = tmp_path_factory.mktemp("regression")
    done = run_recipe("regression", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "linear regression" in done.stdout
    return folder
