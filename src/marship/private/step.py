"""The steps of private models: a run folder's model to a plan, and a plan to an archive.

`export --private he` writes `he_plan.npz` and `private.json` into the run folder, beside what
`export` wrote. `package --private he` makes NAME.mar of them, with no keys, and NAME.client.json.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marship.arguments import checked
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    GoldenCase,
    TensorSpec,
    read_golden,
)
from marship.contract.tolerance import Tolerance
from marship.errors import ModelError, PackageError, ParityError, UsageError
from marship.fit import run
from marship.fit.recipe import RECIPE_FILE, Recipe
from marship.packaging import mar, shipped
from marship.packaging.graph import MODEL_FILE, WholeFile
from marship.packaging.mar import Contents
from marship.packaging.settings import PackageSettings
from marship.private import compiler, rings
from marship.private.client_file import ARCHIVED, KINDS, SUFFIX, ClientFile, KnownCase, Tensor
from marship.private.measure import Figures, measure
from marship.private.segments import SegmentedGraph
from marship.proof import golden
from marship.proof.cases import read_rows
from marship.serving.private.plan import PLAN_FILE, HePlan
from marship.serving.private.public import PublicPlan
from marship.storage import read_json, replacing, replacing_all, write_json

REPORT_FILE = "private.json"
PARITY_FILE, EXAMPLES_FILE = "parity.json", "examples.npz"
HANDLER = "encrypted_handler.py"
HE = KINDS[0]
_MOST_EXAMPLES, _MOST_KNOWN = 256, 4

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Compiled:
    """The result of `export --private he`.

    Attributes:
        run_dir: The folder with the plan.
        figures: What a question costs, and how exact its answer is.
        plan_digest: SHA-256 of the plan, in hexadecimal.
    """

    run_dir: Path
    figures: Figures
    plan_digest: str


@dataclass(frozen=True, slots=True)
class Packaged:
    """The result of `package --private`.

    Attributes:
        archive: For the server.
        client_file: For clients.
    """

    archive: Path
    client_file: Path


def check_kind(kind: str) -> None:
    """Check the kind of a private model.

    Raises:
        UsageError: It is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"private must be {' or '.join(KINDS)}, got {kind!r}.")


@checked
def compile_run(run_dir: str | Path) -> Compiled:
    """Compile the exported model of a run folder for encrypted inputs.

    Raises:
        UsageError: The folder holds no exported model.
        ModelError: A node cannot be computed on encrypted values; the message says what to do.
        ParityError: The plan computes something else than the model.
        LoadError: tenseal is not installed.
    """
    run_dir = Path(run_dir)
    contract = _contract(run_dir)
    _check_interface(contract)
    graph = SegmentedGraph.load(run_dir / MODEL_FILE)
    compiled = compiler.compiled(graph)
    rows = _rows(run_dir, contract)
    wanted = graph.part([graph.input], graph.output)({graph.input: rows})
    plan = rings.fitted(compiled, wanted.shape[1], float(np.abs(wanted).max()))
    _check_parity(plan.compute(rows), wanted, contract)
    data = plan.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    figures = measure(plan, digest, rows, wanted)
    with replacing_all(run_dir) as draft:
        (draft / PLAN_FILE).write_bytes(data)
        report = {"kind": HE, "model_digest": contract.digest, "plan_digest": digest,
                  "figures": asdict(figures)}  # fmt: skip
        write_json(draft / REPORT_FILE, report)
    return Compiled(run_dir, figures, digest)


@checked
def package(
    run_dir: str | Path, settings: PackageSettings | None = None, kind: str = HE
) -> Packaged:
    """Package the plan of a run folder, and write the file for its clients beside the archive.

    Raises:
        UsageError: The folder holds no plan, or a setting is not for private models.
        PackageError: The parts do not belong together.
    """
    run_dir, settings = Path(run_dir), settings or PackageSettings()
    check_kind(kind)
    _refuse(settings)
    made = _Made.read(run_dir, settings)
    client = made.client_file(settings)
    with tempfile.TemporaryDirectory() as draft:
        copy = Path(draft) / ARCHIVED
        copy.write_bytes(client.to_bytes())
        archive = mar.build(replace(made.contents(settings), assets=(copy,)), settings)
    path = archive.with_name(archive.name.removesuffix(".mar") + SUFFIX)
    with replacing(path) as draft_file:
        draft_file.write_bytes(client.to_bytes())
    return Packaged(archive, path)


@dataclass(frozen=True, slots=True)
class _Made:
    """What export left in a run folder."""

    run_dir: Path
    recipe: Recipe
    contract: Contract
    report: Mapping[str, Any]
    parity: Mapping[str, Any]
    cases: list[GoldenCase]

    @classmethod
    def read(cls, run_dir: Path, settings: PackageSettings) -> "_Made":
        contract, report = _contract(run_dir), _report(run_dir)
        if report["model_digest"] != contract.digest:
            raise PackageError(
                f"the plan in {run_dir} must come from its {MODEL_FILE}, which was exported anew. "
                f"Run again: marship export {run_dir} --private he"
            )
        recipe, parity = Recipe.load(run_dir), _optional(run_dir / PARITY_FILE)
        found = parity.get("golden", golden.REAL)
        golden.check_found(found, settings.golden, run_dir, is_export=bool(recipe.build))
        return cls(run_dir, recipe, contract, report, parity, read_golden(run_dir / GOLDEN_FILE))

    @property
    def figures(self) -> Figures:
        return Figures(**self.report["figures"])

    @property
    def digest(self) -> str:
        return str(self.report["plan_digest"])

    def client_file(self, settings: PackageSettings) -> ClientFile:
        plan = HePlan.from_bytes((self.run_dir / PLAN_FILE).read_bytes())
        return ClientFile(
            kind=HE,
            model=settings.name or self.recipe.name,
            version=settings.version,
            digest=self.digest,
            input=_tensor(self.contract.inputs[0]),
            output=_tensor(self.contract.outputs[0]),
            error=self.figures.error_limit,
            plan={
                "public": PublicPlan.of(plan, self.digest).to_json(),
                "noise": self.figures.noise_limit,
            },
            # the client file is public: real rows, somebody's data, stay out of it
            known=() if settings.golden == golden.REAL else tuple(_known(plan, self.cases)),
        )

    def contents(self, settings: PackageSettings) -> Contents:
        tolerance, name = self.contract.tolerance, self.contract.outputs[0].name
        atol = max(tolerance.absolute(name), self.figures.error_limit)
        return Contents(
            name=settings.name or self.recipe.name,
            handler=shipped.handler(HANDLER),
            model=self.run_dir / PLAN_FILE,
            contract=replace(
                self.contract,
                files=(PLAN_FILE,),
                digest=self.digest,
                tolerance=Tolerance(atol=atol, rtol=tolerance.rtol),
            ),
            golden=self.cases,
            evidence={
                "recipe": read_json(self.run_dir / RECIPE_FILE),
                "settings": run.influential(_optional(self.run_dir / run.SETTINGS_FILE)),
                "training": _optional(self.run_dir / "metrics.json"),
                "parity": self.parity,
                "golden": settings.golden,
                "private": self.report,
                "source": PLAN_FILE,
            },
            kind=WholeFile,
        )


def _refuse(settings: PackageSettings) -> None:
    for name in ("handler", "variant", "graph", "graph_example", "custom_ops", "example",
                 "golden_request", "asset"):  # fmt: skip
        if getattr(settings, name):
            raise UsageError(
                f"{name.replace('_', '-')} must be left out of private archives, got "
                f"{getattr(settings, name)}."
            )


def _contract(run_dir: Path) -> Contract:
    for name in (MODEL_FILE, CONTRACT_FILE, GOLDEN_FILE):
        if not (run_dir / name).is_file():
            raise UsageError(
                f"{run_dir} must hold an exported model, got no {name}. "
                f"Export it first: marship export {run_dir}"
            )
    return Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())


def _report(run_dir: Path) -> dict[str, Any]:
    if not (run_dir / REPORT_FILE).is_file():
        raise UsageError(
            f"{run_dir} must hold a plan, got no {REPORT_FILE}. Make it first: marship export "
            f"{run_dir} --private he"
        )
    report: dict[str, Any] = read_json(run_dir / REPORT_FILE)
    return report


def _check_interface(contract: Contract) -> None:
    specs = (*contract.inputs, *contract.outputs)
    is_one_each = len(contract.inputs) == len(contract.outputs) == 1
    if not (is_one_each and all(spec.dtype.startswith("float") for spec in specs)):
        raise ModelError(
            "an encrypted model must have one input and one output of floats, got "
            f"{', '.join(map(str, specs))}. Export it with one of each."
        )
    if contract.batch_axis is None or any(isinstance(a, str) for s in specs for a in s.shape[1:]):
        raise ModelError(
            "an encrypted model must have rows that do not depend on each other, of one size, got "
            f"{', '.join(map(str, specs))}. Export it with a batch and no other variable axis."
        )


def _rows(run_dir: Path, contract: Contract) -> Rows:
    """Rows of the golden cases, and examples: float64 (rows, inputs)."""
    (spec,) = contract.inputs
    found = [case.inputs[spec.name] for case in read_golden(run_dir / GOLDEN_FILE)]
    if (examples := run_dir / EXAMPLES_FILE).is_file():
        found.append(read_rows(examples)[spec.name][:_MOST_EXAMPLES])
    return np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in found])


def _check_parity(found: Rows, wanted: Rows, contract: Contract) -> None:
    name = contract.outputs[0].name
    atol = contract.tolerance.absolute(name)
    difference = np.abs(found - wanted)
    if not (difference <= atol + contract.tolerance.rtol * np.abs(wanted)).all():
        raise ParityError(
            f"the plan must agree with the model within {contract.tolerance}, got a difference of "
            f"{difference.max():g}. Export the model in float32, and report this with the model."
        )


def _known(plan: HePlan, cases: list[GoldenCase]) -> list[KnownCase]:
    """Known cases of golden ones that are nobody's; answers in float64."""
    arrays = [next(iter(case.inputs.values())) for case in cases]
    rows = np.concatenate([a.reshape(len(a), -1) for a in arrays])[:_MOST_KNOWN].astype(np.float64)
    return [KnownCase(row, answer) for row, answer in zip(rows, plan.compute(rows), strict=True)]


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(spec.name, tuple(int(axis) for axis in spec.shape[1:]))


def _optional(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found
