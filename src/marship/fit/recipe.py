"""A training recipe's information for later steps, stored in its run folder as `recipe.json`.

The run folder holds, each file written by one step and never edited by another:

    settings.json checkpoint.pt metrics.json curve.png                        the recipe
    recipe.json examples.npz calibration.npz heldout.npz assets, requests     the recipe
    model.onnx contract.json golden.npz parity.json                           export
    model.<variant>.onnx optimize.json optimize.png                           optimize

`examples`, `calibration` and `heldout` are rows of the model's inputs by name, `heldout` with the
judge's targets as `target/<name>`. If `calibration` has targets, too, optimize finds the layers
that must stay float for int8.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from marship.errors import DataError, UsageError
from marship.storage import as_usage

RECIPE_FILE = "recipe.json"
_TUPLES = ("assets", "dynamic", "output_axes", "requests")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Information about a trained model for later steps.

    Attributes:
        name: The model's name on the server.
        build: Reference to a function that builds the `nn.Module`, called with the settings
            of `settings.json` as keyword arguments it knows, `path/to/file.py:function` or
            `package.module:function`.
        handler: The handler file that goes into the archive: the name of one of marship's, or a
            path.
        judge: Reference to a function `(outputs: Arrays, targets: Arrays) -> dict[str, float]`
            that computes the task's metrics on held-out data; None where there is none.
        metric: The judge's metric that decides.
        greater_is_better: Whether a greater metric is better.
        budget: The largest loss of `metric` that an optimized variant may have.
        pad_values: Per input, the value that fills a short row on its right.
        dynamic: Variable axes beside the batch and those padded, as `input:axis=name`.
        bounds: Per variable axis, its smallest and largest size.
        steps: Per variable axis, the number that all its sizes are multiples of.
        output_axes: Axes of outputs that padded inputs make longer, as `output:axis=name`. The
            handler cuts them where the model tells their true size, so that requests of
            different sizes may share a batch.
        assets: Files of the run folder that the handler reads.
        requests: Files of the run folder with requests of nobody's, recorded as golden requests.
        evidence: Facts about the training for the archive: data digest, licence, etc.
    """

    name: str
    build: str
    handler: str = "onnx_handler.py"
    judge: str | None = None
    metric: str | None = None
    greater_is_better: bool = True
    budget: float = 0.0
    pad_values: Mapping[str, float] = field(default_factory=dict)
    dynamic: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    output_axes: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def save(self, run_dir: Path) -> None:
        """Write `recipe.json` into the run folder."""
        (run_dir / RECIPE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run_dir: Path) -> "Recipe":
        """Read `recipe.json` of a run folder.

        Raises:
            UsageError: The folder was not written by a recipe.
        """
        try:
            raw = json.loads((run_dir / RECIPE_FILE).read_text())
            raw |= {name: tuple(raw[name]) for name in _TUPLES if name in raw}
            raw["bounds"] = {name: (low, high) for name, (low, high) in raw["bounds"].items()}
            return cls(**raw)
        except FileNotFoundError as error:
            raise UsageError(
                f"{run_dir} must be the run folder of a recipe, got one without {RECIPE_FILE}. "
                "Train first, for example: python training/recommend.py"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and (unusable := as_usage(error, run_dir / RECIPE_FILE)):
                raise unusable from error
            raise DataError(
                f"{run_dir / RECIPE_FILE} must be readable, got {error!r}. Train again."
            ) from error


def resolve(reference: str) -> Callable[..., Any]:
    """The function of a reference `file.py:function` or `package.module:function`.

    Raises:
        UsageError: The module, file or function does not exist.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"a reference must read module:function or file.py:function, got {reference!r}."
        )
    found = getattr(_module(place), name, None)
    if not callable(found):
        raise UsageError(f"{place} must define a function {name}, got none of that name.")
    return found  # type: ignore[no-any-return]


def _module(place: str) -> ModuleType:
    """Import a file or a module, with its folder on the path as with `python file.py`."""
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise UsageError(
            f"{place} must be a Python file, got none there. Run this from the folder that the "
            "path starts in."
        )
    folder = str(path.resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):  # standard output is that of --json
            return _run_file(path) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # user code may raise anything at import
        raise UsageError(
            f"{place} must be importable, got: {type(error).__name__}: {error}."
        ) from error


def _run_file(path: Path) -> ModuleType:
    name = f"_marship_recipe_{path.stem}"  # not the name of an installed package
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} has no loader")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    sys.path.insert(0, str(path.parent))  # as for a script: it may import modules beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
