"""Further graphs of an archive: what `--graph NAME=FILE` names, proven as the first one is."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from marship import console
from marship.errors import MarshipError, UsageError
from marship.fit.recipe import RECIPE_FILE
from marship.packaging.graph import Graph
from marship.packaging.mar import Contents, name_of
from marship.packaging.settings import PackageSettings
from marship.proof import onnx_proof
from marship.trust.archive import MOST_GRAPHS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FIRST = "encoder_model.onnx"
_OTHERS = {"decoder": "decoder_model.onnx", "decoder_with_past": "decoder_with_past_model.onnx"}
"""The files of a model in several graphs, as Hugging Face's exporters name them."""
_ONCE = "Name it once: a handler may run one graph in several places."


def of_folder(source: Path, settings: PackageSettings) -> tuple[Path, PackageSettings]:
    """The first graph of a folder with an encoder and decoders, and settings that name the others.

    Graphs that the settings name stay; another source is returned as it is.
    """
    folders = [] if (source / RECIPE_FILE).is_file() else [source, source / "onnx"]
    folder = next((one for one in folders if (one / _FIRST).is_file()), None)
    if folder is None:
        return source, settings
    given = {text.partition("=")[0] for text in settings.graph}
    found = [
        f"{name}={folder / file}"
        for name, file in _OTHERS.items()
        if name not in given and (folder / file).is_file()
    ]
    named = [Path(text.partition("=")[2]).name for text in (*settings.graph, *found)]
    if left := _left_out(folder, [_FIRST, *named]):
        console.err.print(
            f"left out of the archive: {', '.join(left)}. Name one with --graph NAME=FILE",
            style="dim", markup=False, soft_wrap=True,
        )  # fmt: skip
    name = settings.name or name_of(source)
    return folder / _FIRST, replace(settings, name=name, graph=(*settings.graph, *found))


def _left_out(folder: Path, taken: Sequence[str]) -> list[str]:
    """The graphs of a folder that are neither taken nor a variant of one that is."""
    variants = tuple(f"{Path(name).stem}_" for name in taken)
    names = sorted(file.name for file in folder.glob("*.onnx"))
    return [name for name in names if name not in taken and not name.startswith(variants)]


def check(source: Path, settings: PackageSettings) -> None:
    """Refuse what can be seen without the graphs.

    Raises:
        UsageError: A name or a file is invalid, missing or given twice, or no handler runs graphs.
    """
    files = _named("graph", settings.graph)
    for name in (examples := _named("graph-example", settings.graph_example)):
        if name not in files:
            raise UsageError(
                f"graph-example must be of a graph, {' or '.join(files) or 'none is given'}, got "
                f"{name}. Name it with --graph {name}=FILE.onnx."
            )
    seen = {source.resolve(): "the model itself"}
    for name, path in files.items():
        if not path.is_file():
            got = "a folder" if path.is_dir() else "no such file"
            raise UsageError(
                f"graph {name} must be an ONNX file, got {got}: {path}. Name the file: --graph "
                f"{name}=FILE.onnx."
            )
        if before := seen.get(path.resolve()):
            raise UsageError(
                f"graph {name} must be a file of its own, got that of {before}. {_ONCE}"
            )
        seen[path.resolve()] = f"graph {name}"
    for name, path in examples.items():
        if not path.exists():
            raise UsageError(
                f"the example of graph {name} must exist, got no such file: {path}. Write it with "
                "numpy.savez(path, <input name>=<array of rows>)."
            )
    if len(files) > MOST_GRAPHS:
        raise UsageError(
            f"graphs must be at most {MOST_GRAPHS}, got {len(files)}. Join some in one file, or "
            "serve them from an archive of their own."
        )
    if files and settings.handler is None:
        raise UsageError(
            f"graphs ({', '.join(files)}) must come with a handler that runs them, got none. Add "
            "--handler FILE.py, whose class runs self.graphs; docs/onnx.md has an example."
        )


def added(contents: Contents, settings: PackageSettings, draft: Path) -> Contents:
    """The contents with the graphs of the settings, proven, and the libraries of operators.

    Args:
        contents: The model's own; its contract names the libraries.
        settings: Name the graphs and their examples.
        draft: A folder for copies of files that must be rewritten to be served.

    Raises:
        UsageError: Two graphs are equal.
        DataError: An example does not hold inputs of its graph.
        ModelError: A graph cannot be read or run.
    """
    graphs: dict[str, Graph] = {}
    facts = {}
    digests = {contents.contract.digest: "the model itself"}
    for name, path, proof in _proofs(settings, draft):
        if before := digests.get(proof.contract.digest):
            raise UsageError(
                f"graph {name} must be a model of its own, got that of {before}. {_ONCE}"
            )
        digests[proof.contract.digest] = f"graph {name}"
        contract = replace(proof.contract, libraries=contents.contract.libraries)
        graphs[name] = Graph(proof.model, contract, proof.cases)
        facts[name] = {"source": path.name, "rows_alone_and_together": proof.rows}
    if graphs:
        contents = replace(contents, evidence={**contents.evidence, "graphs": facts})
    return replace(contents, graphs=graphs, libraries=tuple(map(Path, settings.custom_ops)))


def proven(path: Path, draft: Path, settings: PackageSettings) -> onnx_proof.OnnxProof:
    """The contract of an ONNX file, and what is proven about it: see `onnx_proof.describe`."""
    wishes = onnx_proof.Wishes(
        example=settings.example,
        golden=settings.golden,
        missing_values=settings.missing_values,
        proof_seconds=settings.proof_seconds,
        limit_s=settings.limit_s,
        libraries=settings.custom_ops,
    )
    return onnx_proof.describe(path, draft, wishes)


def _proofs(
    settings: PackageSettings, draft: Path
) -> Iterator[tuple[str, Path, onnx_proof.OnnxProof]]:
    """Each graph's name, file and proof; one line says what was found."""
    examples = _named("graph-example", settings.graph_example)
    for name, path in _named("graph", settings.graph).items():
        own = draft / "graphs" / name
        own.mkdir(parents=True)
        try:
            proof = proven(path, own, replace(settings, example=examples.get(name)))
        except MarshipError as error:
            advised = str(error).replace("--example ", f"--graph-example {name}=")
            raise type(error)(f"graph {name}: {advised}") from error
        for line in (proof.summary, *proof.remarks):
            if line is not None:
                text = f"graph {name}: {line}"
                console.err.print(text, style="dim", markup=False, soft_wrap=True)
        yield name, path, proof


def _named(flag: str, given: Sequence[str]) -> dict[str, Path]:
    """Files by name, from NAME=FILE.

    Raises:
        UsageError: One is written otherwise, or a name is given twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not (sign and path and _NAME.fullmatch(name)):
            raise UsageError(
                f"{flag} must read name=file, the name in small letters, digits and underscores, "
                f"got {text!r}."
            )
        if name in found:
            raise UsageError(f"{flag} {name} must be given once, got it twice.")
        found[name] = Path(path)
    return found
