"""A run folder, or any ONNX file, to an archive that TorchServe serves."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from marship import console, profiles
from marship.arguments import checked
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    GoldenCase,
    Library,
    digest_files,
    digest_variant,
    read_golden,
)
from marship.contract.tolerance import Tolerance
from marship.errors import PackageError, UsageError
from marship.fit import run
from marship.fit.recipe import RECIPE_FILE, Recipe
from marship.packaging import configure, graphs, onnx_folder, recording, shipped
from marship.packaging.graph import MODEL_FILE
from marship.packaging.mar import (
    NAME,
    Contents,
    build,
    check_files,
    check_store,
    file_name,
    name_of,
)
from marship.packaging.settings import PackageSettings
from marship.proof import golden, missing
from marship.serving.formats import extent
from marship.serving.model import custom_ops
from marship.storage import read_json

PARITY_FILE = "parity.json"
ONNX_HANDLER = "onnx_handler.py"


@checked
def package(source: str | Path, settings: PackageSettings | None = None) -> Path:
    """Build the archive of a run folder, of any ONNX file, or of a folder of Hugging Face with one.

    Args:
        source: The folder that `export` wrote, the file, or a folder with config.json and
            model.onnx or onnx/model.onnx.
        settings: What goes into the archive and how it is served; None is the defaults.

    Returns:
        The `.mar` in the model store.

    Raises:
        UsageError: The source, a name, or a given file is invalid.
        DataError: The example does not hold inputs of the model.
        PackageError: The parts do not belong together.
        ModelError: The model cannot be read or run.

    Example:
        >>> marship.package("runs/tiny", marship.PackageSettings(profile="throughput")).name
        'tiny.mar'
    """
    with gathered(source, settings) as (contents, resolved):
        return build(contents, resolved)


@contextmanager
def gathered(
    source: str | Path, settings: PackageSettings | None = None
) -> Iterator[tuple[Contents, PackageSettings]]:
    """What `package` packs, with files that exist as long as this is entered; raises as it does."""
    source, settings = graphs.of_folder(Path(source), settings or PackageSettings())
    _check(settings)
    _check_example(source, settings.example)
    _check_variant(source, settings.variant)
    graphs.check(source, settings)
    libraries = _libraries(settings.custom_ops)
    with tempfile.TemporaryDirectory() as draft:
        if source.is_dir() and onnx_folder.is_one(source):
            contents = _from_folder(source, Path(draft), settings)
        elif source.is_dir():
            onnx_folder.check_run(source)
            contents = _from_run(source, settings)
        else:
            contents = _from_onnx(source, Path(draft), settings)
        _say_if_alone(contents, settings)
        bounded = replace(extent.bounded(contents.contract), libraries=libraries)
        contents = replace(contents, contract=bounded)
        yield graphs.added(contents, settings, Path(draft)), settings


def _check(settings: PackageSettings) -> None:
    """Refuse what can be seen without the model: proving it may take minutes."""
    check_store(settings.model_store)
    check_files(_handler(settings, ONNX_HANDLER), map(Path, settings.asset))
    recording.check_files([*map(Path, settings.golden_request)])
    profile = profiles.find(settings.profile, settings.batch_size)
    golden.check_kind(settings.golden)
    missing.check_choice(settings.missing_values)
    configure.parsed(settings.option)
    if settings.name is not None:
        if not NAME.fullmatch(settings.name):
            raise UsageError(
                "name must be letters, digits, dots, dashes and underscores, got "
                f"{settings.name!r}."
            )
        file_name(settings.name, settings)
    if not configure.VERSION.fullmatch(settings.version):
        raise UsageError(f"version must be digits and dots, such as 1.0, got {settings.version!r}.")
    if settings.client_timeout_s is not None and profile.batch_size == 1:
        raise UsageError(
            "client-timeout-s must come with a batch size over 1, got 1: TorchServe drops none but "
            "those behind the first of a batch. Add --profile throughput."
        )
    if settings.max_workers < settings.min_workers:
        raise UsageError(
            f"max-workers must be at least min-workers, got {settings.max_workers} and "
            f"{settings.min_workers}."
        )


def _libraries(paths: tuple[str, ...]) -> tuple[Library, ...]:
    """The libraries of custom operators, which must run on this machine, too."""
    names = [Path(path).name for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"libraries of custom operators must have names of their own, got two {twice}. Rename "
            "one, or give it once."
        )
    try:
        found = tuple(custom_ops.describe(Path(path)) for path in paths)
    except OSError as error:
        raise UsageError(
            f"{error.filename} must be a library of custom operators, got: {error.strerror}."
        ) from error
    for library in found:
        custom_ops.check_platform(library)
    return found


def _check_example(source: Path, example: Path | None) -> None:
    if example is None:
        return
    if source.is_dir():
        raise UsageError(
            f"example must be of an ONNX file, got one for {source}. A run folder has its own."
        )
    if not example.exists():
        raise UsageError(f"{example} must hold example inputs, got no such file.")


def _check_variant(source: Path, variant: str | None) -> None:
    if variant is not None and source.is_file():
        raise UsageError(
            f"variant must be of a run folder, or of one with model_VARIANT.onnx, got {variant} of "
            f"{source}. Package the variant's own file, with those of further graphs by --graph."
        )


def _from_run(run_dir: Path, settings: PackageSettings) -> Contents:
    recipe = Recipe.load(run_dir)
    for name in (MODEL_FILE, CONTRACT_FILE, GOLDEN_FILE):
        if not (run_dir / name).is_file():
            raise UsageError(
                f"{run_dir} must hold an exported model, got no {name}. "
                f"Export it first: marship export {run_dir}"
            )
    parity = _optional(run_dir / PARITY_FILE) or {}
    found = parity.get("golden", golden.REAL)
    golden.check_found(found, settings.golden, run_dir, is_export=bool(recipe.build))
    contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
    cases = read_golden(run_dir / GOLDEN_FILE)
    model, tolerance = chosen_file(run_dir, contract, settings.variant)
    if settings.missing_values in missing.ALLOWING:
        contract, rows = _with_gaps(contract, model, cases, settings)
        parity |= rows
    elif settings.missing_values == missing.REFUSE:
        contract, cases = missing.refused(contract, cases)
    return Contents(
        name=settings.name or recipe.name,
        handler=_handler(settings, recipe.handler),
        model=model,
        contract=for_file(contract, model, tolerance),
        golden=cases,
        evidence={
            "recipe": read_json(run_dir / RECIPE_FILE),
            "settings": run.influential(_optional(run_dir / run.SETTINGS_FILE) or {}),
            "training": run.publishable(_optional(run_dir / run.METRICS_FILE) or {}),
            "parity": parity,
            "golden": settings.golden,
            "optimize": _optional(run_dir / "optimize.json"),
            "source": model.name,
        },
        assets=(*(run_dir / name for name in recipe.assets), *map(Path, settings.asset)),
        requests=tuple(map(Path, settings.golden_request))
        or tuple(run_dir / name for name in recipe.requests),
    )


def _with_gaps(
    contract: Contract, model: Path, cases: list[GoldenCase], settings: PackageSettings
) -> tuple[Contract, dict[str, Any]]:
    """The contract for missing values, and the evidence: the export had rows without any."""
    from marship.proof import parity

    contract = missing.allowed(contract)
    if contract.batch_axis is None:
        return contract, {}
    seen = cases[-1].inputs if cases else None
    contract, proof = parity.with_batch_axis(
        contract, parity.runner(model), seen, seconds=settings.proof_seconds
    )
    return contract, {"rows_alone_and_together": proof and proof.evidence()}


def chosen_file(run_dir: Path, contract: Contract, variant: str | None) -> tuple[Path, Tolerance]:
    """The variant's file and how far its outputs may be from the reference's."""
    exported = run_dir / MODEL_FILE
    files = [run_dir / name for name in contract.files]
    if not all(file.is_file() for file in files) or digest_files(*files) != contract.digest:
        raise PackageError(
            f"{exported} must be the file that {CONTRACT_FILE} was written for, got another "
            "digest. Export it, or optimize the ONNX file, again."
        )
    report = _optional(run_dir / "optimize.json")
    if report is None:
        if variant is not None:
            raise UsageError(
                f"variant {variant} must have been built. Run first: marship optimize {run_dir}"
            )
        return exported, contract.tolerance
    if report["model_digest"] != contract.digest:
        raise PackageError(
            f"the variants in {run_dir} must come from its {MODEL_FILE}, which was exported anew. "
            f"Run again: marship optimize {run_dir}"
        )
    wanted = variant or report["chosen"]
    built = {entry["name"]: entry for entry in report["variants"] if entry["built"]}
    if wanted not in built:
        raise UsageError(f"variant must be one of {', '.join(built)}, got {wanted}.")
    path, digest = run_dir / built[wanted]["file"], built[wanted].get("digest")
    if digest is not None and path.is_file() and digest_variant(path) != digest:
        raise PackageError(
            f"{path} must be the file that optimize.json was written for, got another digest. Run "
            f"again: marship optimize {run_dir}"
        )
    return path, Tolerance(**built[wanted]["tolerance"])


def for_file(contract: Contract, model: Path, tolerance: Tolerance) -> Contract:
    """The proven contract, for another file with the same tensors."""
    from marship.proof import graph

    stated = graph.contract_of(model)
    graph.refuse_random(model)

    def names(c: Contract) -> list[tuple[str, str]]:
        return [(spec.name, spec.dtype) for spec in (*c.inputs, *c.outputs)]

    if names(stated) != names(contract):
        raise PackageError(
            f"{model.name} must take and give what the contract says, got {names(stated)}. "
            "Optimize again."
        )
    return replace(
        contract,
        files=(MODEL_FILE, *stated.files[1:]),
        digest=stated.digest,
        opset=stated.opset,
        tolerance=tolerance,
    )


def _from_folder(folder: Path, draft: Path, settings: PackageSettings) -> Contents:
    plan = onnx_folder.planned(folder, draft, settings)
    name = settings.name or name_of(folder)
    settings = replace(settings, example=plan.example, name=name)
    return plan.finish(_from_onnx(plan.model, draft, settings, plan.handler))


def _from_onnx(
    path: Path, draft: Path, settings: PackageSettings, handler: str = ONNX_HANDLER
) -> Contents:
    if not path.is_file():  # checked first: the proof runs in a process of its own
        raise UsageError(
            f"{path} must be a run folder or an ONNX file, got no such file. Train "
            "and export first, or name another."
        )
    proof = graphs.proven(path, draft, settings)
    is_joined = profiles.find(settings.profile, settings.batch_size).batch_size > 1
    says_rows = proof.contract.batch_axis or not is_joined  # else `_say_if_alone` does
    for line in (proof.summary if says_rows else None, *proof.remarks):
        if line is not None:
            console.err.print(line, style="dim", markup=False, soft_wrap=True)
    return Contents(
        name=settings.name or path.stem,
        handler=_handler(settings, handler),
        model=proof.model,
        contract=replace(proof.contract, files=(MODEL_FILE, *proof.contract.files[1:])),
        golden=proof.cases,
        evidence={
            "source": path.name,
            "golden": f"{settings.golden}, computed by this ONNX file",
            "example": settings.example and settings.example.name,
            "rows_alone_and_together": proof.rows,
        },
        assets=tuple(map(Path, settings.asset)),
        requests=tuple(map(Path, settings.golden_request)),
    )


def _say_if_alone(contents: Contents, settings: PackageSettings) -> None:
    """Say why requests run one by one although the profile joins them, if they do."""
    profile = profiles.find(settings.profile, settings.batch_size)
    if profile.batch_size == 1 or contents.contract.batch_axis is not None:
        return
    from marship.proof import axes

    facts = contents.evidence.get("parity") or contents.evidence
    rows = facts.get("rows_alone_and_together")
    reason = rows.get("reason") if isinstance(rows, dict) else None
    console.err.print(
        f"requests run alone: {reason or axes.obstacle(contents.contract)}",
        style="dim", markup=False, soft_wrap=True,
    )  # fmt: skip


def _handler(settings: PackageSettings, default: str) -> Path:
    return shipped.named(settings.handler) if settings.handler else shipped.handler(default)


def _optional(path: Path) -> Any:  # noqa: ANN401  any JSON value
    return read_json(path) if path.is_file() else None
