"""The steps of private models: a run folder's model to a plan, and a plan to an archive.

`export --private he` writes `he_plan.npz` and `private.json` into the run folder, beside what
`export` wrote. `package --private he` makes NAME.mar of them, with no keys, and NAME.client.json
and NAME.known.npz for clients.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from marship.arguments import checked
from marship.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Arrays,
    Contract,
    GoldenCase,
    TensorSpec,
    digest_files,
    read_golden,
    write_golden,
)
from marship.contract.tolerance import Tolerance
from marship.errors import ModelError, PackageError, ParityError, UsageError
from marship.fit import run
from marship.fit.recipe import RECIPE_FILE, Recipe
from marship.packaging import mar, shipped
from marship.packaging.graph import MODEL_FILE, WholeFile
from marship.packaging.mar import Contents
from marship.packaging.settings import PackageSettings
from marship.private import compiler, exactness, known, rings
from marship.private.client_file import (
    ARCHIVED,
    ENCODER_SUFFIX,
    KINDS,
    KNOWN_SUFFIX,
    SUFFIX,
    ClientFile,
    Tensor,
)
from marship.private.measure import Figures, measure
from marship.private.segments import SegmentedGraph
from marship.proof import golden
from marship.proof.cases import read_rows
from marship.serving.private.plan import PLAN_FILE, HePlan, filled
from marship.serving.private.public import PublicPlan
from marship.storage import read_json, replacing, replacing_all, write_json

REPORT_FILE, CASES_FILE, ENCODER_FILE = "private.json", "he_golden.npz", "he_encoder.onnx"
KNOWN_FILE = "he_known.npz"
PARITY_FILE, EXAMPLES_FILE = "parity.json", "examples.npz"
HANDLER = "encrypted_handler.py"
HE = KINDS[0]
_MOST_EXAMPLES, _MOST_GOLDEN = 256, 8

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
        known: For clients and not for the server: answers that are known.
        encoder: For clients, too: their part of the model, if it has one.
    """

    archive: Path
    client_file: Path
    known: Path
    encoder: Path | None = None


def check_kind(kind: str) -> None:
    """Check the kind of a private model.

    Raises:
        UsageError: It is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"private must be {' or '.join(KINDS)}, got {kind!r}.")


@checked
def compile_run(run_dir: str | Path, start: str | None = None) -> Compiled:
    """Compile the exported model of a run folder for encrypted inputs.

    Args:
        run_dir: The folder.
        start: The tensor of the graph from which on values are encrypted; what leads to it is
            for the client. None encrypts the model's input.

    Raises:
        UsageError: The folder holds no exported model, or one whose cases are too large to encrypt.
        ModelError: A node cannot be computed on encrypted values; the message says what to do.
        ParityError: The plan computes something else than the model, or too inexactly.
        LoadError: tenseal is not installed.
    """
    run_dir = Path(run_dir)
    contract = _contract(run_dir)
    _check_interface(contract, start)
    cases = [case.inputs for case in read_golden(run_dir / GOLDEN_FILE)]
    row = {name: array[:1] for name, array in cases[-1].items()}
    graph = SegmentedGraph.load(run_dir / MODEL_FILE, row, start)
    compiled = compiler.compiled(graph)
    examples = _examples(run_dir)
    seen = [*cases, *_some(examples, contract)]
    parts = [graph.split(inputs) for inputs in seen]
    rows, wanted = (np.concatenate(part) for part in zip(*parts, strict=True))
    moving = filled(wanted, [(place, 0.0) for place, _ in compiled.constants])
    largest = float(np.abs(moving).max())
    plan = rings.fitted(compiled, wanted.shape[1], largest)
    rings.check_keys(plan)
    _check_parity(plan.compute(rows), wanted, contract)
    data = plan.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    figures = measure(plan, digest, rows, wanted, largest=largest, names=compiled.names)
    exactness.check(figures, plan, compiled.names, rows)
    report = {
        "kind": HE,
        "model_digest": contract.digest,
        "plan_digest": digest,
        "figures": asdict(figures),
    }
    cases_known = known.draw(graph, plan, contract, examples, largest)
    with replacing_all(run_dir) as draft:
        (draft / PLAN_FILE).write_bytes(data)
        (draft / KNOWN_FILE).write_bytes(cases_known.to_bytes())
        count = min(_MOST_GOLDEN, sum(len(next(iter(inputs.values()))) for inputs in cases))
        write_golden(
            draft / CASES_FILE,
            [_case(contract, graph, rows[:count], wanted[:count])],
        )
        if graph.is_within:
            onnx.save(graph.encoder(), str(draft / ENCODER_FILE))
            report["encoder"] = ENCODER_FILE
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
    cases = _copied(made.run_dir / KNOWN_FILE, path, KNOWN_SUFFIX)
    encoder = made.encoder()
    own = None if encoder is None else _copied(encoder, path, ENCODER_SUFFIX)
    return Packaged(archive, path, cases, own)


def _copied(file: Path, client_file: Path, suffix: str) -> Path:
    """Copy a file of the run beside a client file."""
    target = client_file.with_name(client_file.name.removesuffix(SUFFIX) + suffix)
    with replacing(target) as draft:
        shutil.copyfile(file, draft)
    return target


@dataclass(frozen=True, slots=True)
class _Made:
    """What export left in a run folder."""

    run_dir: Path
    recipe: Recipe
    contract: Contract
    report: Mapping[str, Any]
    parity: Mapping[str, Any]
    case: GoldenCase

    @classmethod
    def read(cls, run_dir: Path, settings: PackageSettings) -> "_Made":
        contract, report = _contract(run_dir), _report(run_dir)
        if report["model_digest"] != contract.digest:
            raise PackageError(
                f"the plan in {run_dir} must come from its {MODEL_FILE}, which was exported anew. "
                f"Run again: marship export {run_dir} --private he"
            )
        if not (run_dir / KNOWN_FILE).is_file():
            raise PackageError(
                f"{run_dir} must hold {KNOWN_FILE}, got none. Run again: marship export {run_dir} "
                "--private he"
            )
        recipe, parity = Recipe.load(run_dir), _optional(run_dir / PARITY_FILE)
        found = parity.get("golden", golden.REAL)
        golden.check_found(found, settings.golden, run_dir, is_export=bool(recipe.build))
        (case,) = read_golden(run_dir / CASES_FILE)
        return cls(run_dir, recipe, contract, report, parity, case)

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
            input=self._tensor(self.case.inputs),
            output=self._tensor(self.case.outputs),
            error=self.figures.error_limit,
            plan={
                "public": PublicPlan.of(plan, self.digest).to_json(),
                "noise": self.figures.noise_limit,
            },
            known=digest_files(self.run_dir / KNOWN_FILE),
            encoder=self._encoder_digest(),
        )

    @staticmethod
    def _tensor(arrays: Arrays) -> Tensor:
        ((name, array),) = arrays.items()
        return Tensor(name, array.shape[1:])

    def encoder(self) -> Path | None:
        """The client's part of the model, if there is one."""
        return self.run_dir / ENCODER_FILE if "encoder" in self.report else None

    def _encoder_digest(self) -> str | None:
        encoder = self.encoder()
        return None if encoder is None else digest_files(encoder)

    def contents(self, settings: PackageSettings) -> Contents:
        tolerance, name = self.contract.tolerance, self.contract.outputs[0].name
        atol = max(tolerance.absolute(name), self.figures.error_limit)
        return Contents(
            name=settings.name or self.recipe.name,
            handler=shipped.handler(HANDLER),
            model=self.run_dir / PLAN_FILE,
            contract=replace(
                self.contract,
                inputs=(self._input(),),
                bounds={},
                steps={},
                files=(PLAN_FILE,),
                digest=self.digest,
                tolerance=Tolerance(atol=atol, rtol=tolerance.rtol),
            ),
            golden=[self.case],
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

    def _input(self) -> TensorSpec:
        ((name, array),) = self.case.inputs.items()
        axes = (str(self.contract.batch_axis), *array.shape[1:])
        return TensorSpec(name, str(array.dtype), axes)


def _case(contract: Contract, graph: SegmentedGraph, rows: Rows, wanted: Rows) -> GoldenCase:
    """Rows as a golden case of what is encrypted."""
    given, made = (graph.shapes[name] for name in (graph.input, graph.output))
    spec = contract.outputs[0]
    return GoldenCase(
        {graph.input: rows.astype(np.float32).reshape(len(rows), *given)},
        {spec.name: wanted.astype(spec.dtype).reshape(len(rows), *made)},
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
    if run_dir.is_file():
        raise UsageError(
            f"an encrypted model must be exported from PyTorch, got the file {run_dir}. Run: "
            "marship export model.py:build --example example.npz --private he, and package that "
            "run folder. Three parties take ONNX files: --private mpc."
        )
    for name in (MODEL_FILE, CONTRACT_FILE, GOLDEN_FILE):
        if not (run_dir / name).is_file():
            raise UsageError(
                f"{run_dir} must hold an exported model, got no {name}. "
                f"Export it first: marship export {run_dir}"
            )
    return Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())


def _report(run_dir: Path) -> dict[str, Any]:
    if not (run_dir / REPORT_FILE).is_file():
        is_trained = (run_dir / run.CHECKPOINT_FILE).is_file()  # else exported from own code
        how = f"marship export {run_dir}" if is_trained else "repeat the export that made it, with"
        raise UsageError(
            f"{run_dir} must hold a plan, got no {REPORT_FILE}. Make it first: {how} --private he"
        )
    report: dict[str, Any] = read_json(run_dir / REPORT_FILE)
    return report


def _check_interface(contract: Contract, start: str | None) -> None:
    specs = contract.outputs if start else (*contract.inputs, *contract.outputs)
    is_one_each = len(contract.outputs) == 1 and (start is not None or len(contract.inputs) == 1)
    if not (is_one_each and all(spec.dtype == "float32" for spec in specs)):
        raise ModelError(
            "an encrypted model must have one input and one output of float32, got "
            f"{', '.join(map(str, specs))}. Export it with one of each, or let clients compute its "
            "first part: --private-from TENSOR."
        )
    if contract.batch_axis is None or any(isinstance(a, str) for s in specs for a in s.shape[1:]):
        raise ModelError(
            "an encrypted model must have rows that do not depend on each other, of one size, got "
            f"{', '.join(map(str, specs))}. Export it with a batch and no other variable axis."
        )


def _examples(run_dir: Path) -> Arrays | None:
    """The run's examples, if it has any."""
    path = run_dir / EXAMPLES_FILE
    return read_rows(path) if path.is_file() else None


def _some(examples: Arrays | None, contract: Contract) -> Iterator[Arrays]:
    """Some rows of examples, if there are any."""
    if examples is not None:
        yield {spec.name: examples[spec.name][:_MOST_EXAMPLES] for spec in contract.inputs}


def _check_parity(found: Rows, wanted: Rows, contract: Contract) -> None:
    name = contract.outputs[0].name
    atol = contract.tolerance.absolute(name)
    difference = np.abs(found - wanted)
    if not (difference <= atol + contract.tolerance.rtol * np.abs(wanted)).all():
        raise ParityError(
            f"the plan must agree with the model within {contract.tolerance}, got a difference of "
            f"{difference.max():g}. Export the model in float32, and report this with the model."
        )


def _optional(path: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found
