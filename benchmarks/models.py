"""Takes many models from their files to answers: `python benchmarks/models.py`.

Each model is packaged, loaded as a worker loads it, and asked in all formats, in a process of its
own; its answers are held against those of a reference. The table goes to docs/models.md.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collection import onnx_tests, packages, page, processes, pytorch, results, tables
from collection.sample import Sample

import marship
from marship import console
from marship.errors import UsageError
from marship.settings import flags, setting

SOURCES: Mapping[str, Callable[[Path], list[Sample]]] = {
    **{kind: lambda _, kind=kind: onnx_tests.samples(kind) for kind in onnx_tests.KINDS},
    packages.KIND: packages.samples,
    tables.KIND: tables.samples,
    pytorch.KIND: lambda _: pytorch.samples(),
}
PAGE = Path(__file__).parents[1] / "docs" / "models.md"


@dataclass(frozen=True)
class ModelsSettings:
    """Which models are tried, and where the table goes."""

    kind: tuple[str, ...] = setting((), f"one of: {', '.join(SOURCES)}; may be repeated; else all")
    only: tuple[str, ...] = setting((), "a model by its name; may be repeated; else all")
    out: Path | None = setting(None, "the page to write; by default docs/models.md, if all ran")
    scratch: Path = setting(
        Path(tempfile.gettempdir()) / "marship-models", "folder for files, and results to resume"
    )
    processes: int = setting(1, "models that are tried at the same time", minimum=1)


@flags(ModelsSettings)
def main(settings: ModelsSettings) -> None:
    """Take many models from their files to answers, and write the table of verdicts."""
    chosen = _chosen(settings)
    path = settings.scratch / f"results-{_version()}.jsonl"
    done = results.read(path)
    left = [sample for sample in chosen if (sample.kind, sample.name) not in done]
    with console.progress() as bar:
        bar.live.auto_refresh = False  # its thread must not hold a lock while a process is forked
        task = bar.add_task("models", total=len(chosen), completed=len(chosen) - len(left))
        for outcome in processes.outcomes(left, settings.scratch, settings.processes):
            done[outcome.kind, outcome.name] = outcome
            results.add(path, outcome)
            bar.update(task, advance=1, description=outcome.name[:40].ljust(40))
            bar.refresh()
    wanted = [done[sample.kind, sample.name] for sample in chosen]
    text = page.text(wanted, tables.versions() if tables.KIND in _kinds(settings) else [])
    everything = not (settings.kind or settings.only)
    if settings.out or everything:
        (settings.out or PAGE).write_text(text)
    console.out.print(page.counts(wanted), markup=False)


def _kinds(settings: ModelsSettings) -> Sequence[str]:
    unknown = sorted(set(settings.kind) - set(SOURCES))
    if unknown:
        raise UsageError(f"kind must be one of {', '.join(SOURCES)}, got {', '.join(unknown)}.")
    return settings.kind or tuple(SOURCES)


def _chosen(settings: ModelsSettings) -> list[Sample]:
    """The models to try.

    Raises:
        UsageError: There is no such kind, or no such model.
    """
    settings.scratch.mkdir(parents=True, exist_ok=True)
    found = [s for kind in _kinds(settings) for s in SOURCES[kind](settings.scratch)]
    unknown = sorted(set(settings.only) - {sample.name for sample in found})
    if unknown:
        raise UsageError(f"only must name models of these kinds, got {', '.join(unknown)}.")
    return [sample for sample in found if not settings.only or sample.name in settings.only]


def _version() -> str:
    """The first digits of a digest over all that decides a verdict: results of others are stale."""
    folders = Path(marship.__file__).parent, Path(__file__).parent / "collection"
    digest = hashlib.sha256()
    for path in sorted(file for folder in folders for file in folder.rglob("*.py")):
        if path.name != "page.py":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    console.run_recipe(main)
