"""Three archives of one model, each for its operator alone, and the client's file."""

import hashlib
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from marship.contract import CONTRACT_FILE, Contract, GoldenCase, TensorSpec, digest_files
from marship.contract.tolerance import Tolerance
from marship.errors import ModelError, ParityError, UsageError
from marship.packaging import configure, mar, shipped, step
from marship.packaging.graph import MODEL_FILE, WholeFile
from marship.packaging.mar import Contents
from marship.packaging.settings import PackageSettings
from marship.private.client_file import ARCHIVED, KINDS, SUFFIX, ClientFile, Tensor
from marship.private.mpc import cards, lowering, nodes
from marship.private.mpc.nodes import Reals
from marship.serving.private.mpc import identity, rehearsal, ring, shares
from marship.serving.private.mpc.files import PARTY_FILE, pack, shares_info, sizes_of
from marship.serving.private.mpc.model import SharedModel
from marship.serving.private.mpc.program import Card, ProgramStep, SharedProgram, row_bytes
from marship.storage import explained

MPC = KINDS[1]
HANDLER = "mpc_handler.py"
INPUT_LIMIT = 16.0
"""No input is larger, unless `--option input_limit=` says otherwise: `check_bounds` needs one."""
_BATCH, _DELAY_MS = 32, 1
_MOST_GOLDEN_ROWS, _RANDOM_ROWS = 4, 8
_LEAST_TOLERANCE, _MOST_ERROR = 2.0**-6, 0.05
_MOST_ROW_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SharedPackage:
    """What packaging for three parties wrote.

    Attributes:
        archives: Of parties 0, 1 and 2.
        client_file: What clients must know.
        error: The largest difference from the model's golden outputs.
        rounds: Messages one after the other for a batch.
        failure: Upper bound of the probability that a row of any allowed input fails, and must be
            asked again.
    """

    archives: tuple[Path, ...]
    client_file: Path
    error: float
    rounds: int
    failure: float


@dataclass(frozen=True, slots=True)
class PartyPlan:
    """What three parties would do with an exported model.

    Attributes:
        run_dir: The folder with the model.
        operations: How many steps of each kind.
        weights: Numbers that are shared.
        row_bytes: About the memory that a party takes for a row.
        rounds: Messages one after the other for a batch.
        failure: As of `SharedPackage`.
    """

    run_dir: Path
    operations: Mapping[str, int]
    weights: int
    row_bytes: int
    rounds: int
    failure: float


def plan(run_dir: str | Path) -> PartyPlan:
    """Look whether three parties can compute the exported model of a run folder.

    Raises:
        ModelError: They cannot; the message says why.
    """
    run_dir = Path(run_dir)
    contract = Contract.from_json((run_dir / CONTRACT_FILE).read_bytes())
    factor, ordered = nodes.for_clients(
        nodes.ordered(lowering.lower(run_dir / MODEL_FILE, contract))
    )
    nodes.check_bounds(ordered, INPUT_LIMIT, factor)
    steps = nodes.steps(ordered)
    size_bytes = _checked_memory(ordered[0].size, steps)
    weights = sum(array.size for node in ordered for array in node.weights)
    kinds = Counter(one.operation for one in steps)
    return PartyPlan(run_dir, kinds, weights, size_bytes, _rounds(steps), _failure(steps))


def build(
    contents: Contents, settings: PackageSettings, card_files: Sequence[str]
) -> SharedPackage:
    """Share a model, try the shares, and write the archives.

    Args:
        contents: The open model's archive, as it would be.
        settings: How it is packed.
        card_files: The three parties' cards.

    Raises:
        UsageError: A setting or a card cannot be used.
        ModelError: A node cannot be computed by three parties, or a value is not bounded.
        ParityError: The shares compute something else than the model.
    """
    _check(settings)
    trio = cards.trio(tuple(card_files))
    output = lowering.lower(contents.model, contents.contract)
    factor, ordered = nodes.for_clients(nodes.ordered(output))
    limit = _input_limit(settings)
    nodes.check_bounds(ordered, limit, factor)
    steps = nodes.steps(ordered)
    _checked_memory(ordered[0].size, steps)
    golden = _golden(contents.golden, contents.contract, limit)
    program = SharedProgram(
        model=contents.name,
        version=settings.version,
        sharing=secrets.token_hex(16),
        input_size=ordered[0].size,
        steps=steps,
        input_limit=limit,
        input_factor=factor,
        golden_rows=len(golden[0]),
        tolerance=_LEAST_TOLERANCE,
        cards=trio,
        sealed=("", "", ""),
    )
    shared = [array for node in ordered for array in node.weights]
    shared += [golden[0] * factor, golden[1]]
    parts = shares.deal(np.concatenate([ring.encode(array).ravel() for array in shared]))
    error, tolerance = _tried(program, parts, golden, contents.model)
    program = replace(program, tolerance=tolerance)
    sealed = [_sealed(program, card, part) for card, part in zip(trio, parts, strict=True)]
    digests = tuple(hashlib.sha256(data).hexdigest() for data in sealed)
    program = replace(program, sealed=digests)
    client = _client(program, contents.contract)
    paths = _write(contents, settings, program, sealed, client)
    return SharedPackage(
        tuple(paths[:3]), paths[3], error, _rounds(program.steps), _failure(program.steps)
    )


def package(
    source: str | Path, settings: PackageSettings | None, card_files: Sequence[str]
) -> SharedPackage:
    """Share the model of a run folder, or of an ONNX file, among three parties.

    Of a run folder it is the exported model, whatever variant `optimize` chose.

    Raises:
        MarshipError: As `packaging.step.package`, and `build`.
    """
    source, settings = Path(source), settings or PackageSettings()
    _check(settings)
    cards.trio(tuple(card_files))  # before a proof that may take minutes
    with step.gathered(source, settings) as (contents, chosen):
        exported = source / MODEL_FILE
        model = exported if exported.is_file() else contents.model
        return build(replace(contents, model=model), chosen, card_files)


def _check(settings: PackageSettings) -> None:
    if settings.seal is not None:
        raise UsageError(
            "seal must be left out of a model of three parties, got a key: each archive is sealed "
            "to its operator's card already."
        )
    if settings.max_workers > 1 or settings.min_workers > 1:
        raise UsageError(
            f"a model of three parties must have one worker, got {settings.max_workers}: its "
            "parties' random words are in step. Leave max-workers out; batches fill one worker."
        )
    for name in ("graph", "custom_ops", "golden_request", "asset", "handler", "variant"):
        if getattr(settings, name):
            raise UsageError(
                f"{name.replace('_', '-')} must be left out of a model of three parties, got "
                f"{getattr(settings, name)}: they compute one graph and nothing else."
            )


def _checked_memory(input_size: int, steps: Sequence[ProgramStep]) -> int:
    """About the memory of a row at a party."""
    found = row_bytes(input_size, steps)
    if found > _MOST_ROW_BYTES:
        raise ModelError(
            f"a row must take at most {_MOST_ROW_BYTES / 1e9:g} GB of a party's memory, got about "
            f"{found / 1e9:.1f}. Use smaller inputs, larger strides or fewer channels."
        )
    return found


def _input_limit(settings: PackageSettings) -> float:
    options = configure.parsed(settings.option)
    limit = options.pop("input_limit", INPUT_LIMIT)
    if options or not isinstance(limit, int | float) or not 0 < limit < ring.LIMIT:
        raise UsageError(
            "a model of three parties must have no option but input_limit, a number from 0 to "
            f"{ring.LIMIT:g}, got {', '.join(settings.option)}."
        )
    return float(limit)


def _golden(cases: Sequence[GoldenCase], contract: Contract, limit: float) -> tuple[Reals, Reals]:
    """Rows of golden inputs and outputs, (rows, size) each, with inputs within the limit."""
    pairs = [
        (case.inputs[contract.inputs[0].name], case.outputs[contract.outputs[0].name])
        for case in cases
    ]
    inputs, outputs = (
        np.concatenate([np.asarray(one[n], np.float64).reshape(len(one[n]), -1) for one in pairs])
        for n in (0, 1)
    )
    fitting = np.abs(inputs).max(1) <= limit
    if not fitting.any():
        raise UsageError(
            f"golden inputs must be within {limit:g}, got up to {np.abs(inputs).max():.3g}. Scale "
            "the model's inputs, or package with --option input_limit=NUMBER."
        )
    inputs, outputs = (array[fitting][:_MOST_GOLDEN_ROWS] for array in (inputs, outputs))
    if not outputs.any():
        raise UsageError(
            "golden outputs must have a number other than 0, got zeros: no error would be seen. "
            "Export with inputs for which the model answers something."
        )
    return inputs, outputs


def _tried(
    program: SharedProgram, parts: Sequence[bytes], golden: tuple[Reals, Reals], model: Path
) -> tuple[float, float]:
    """The largest error of the golden outputs, and the tolerance for every session.

    Random rows as large as the golden ones are compared with the open model's, too: golden cases
    may leave alone what fixed point loses, and a large constant hides it.
    """
    models = [SharedModel(program, number, part) for number, part in enumerate(parts)]
    drawn = np.random.default_rng(0).uniform(-1, 1, (_RANDOM_ROWS, program.input_size))
    drawn = drawn * (np.abs(golden[0]).max() or program.input_limit)
    wanted = _open_outputs(model, drawn)
    given = np.concatenate([golden[0], drawn]) * program.input_factor
    found = ring.decode(rehearsal.run(models, ring.encode(given)))
    largest = float(np.abs(golden[1]).max())
    error = _checked(found[: len(golden[0])], golden[1], largest, "golden")
    _checked(found[len(golden[0]) :], wanted, float(np.ptp(wanted, axis=0).max()), "random")
    least = min(_LEAST_TOLERANCE, 4 * _MOST_ERROR * largest)
    return error, float(2.0 ** np.ceil(np.log2(max(4 * error, least))))


def _checked(found: Reals, wanted: Reals, scale: float, name: str) -> float:
    """The largest error of outputs, which must be small against their scale."""
    error = float(np.abs(found - wanted).max())
    if not error <= _MOST_ERROR * scale:
        raise ParityError(
            f"three parties must compute outputs of {name} inputs within "
            f"{_MOST_ERROR * scale:.3g}, got a difference of {error:.3g}. Scale inputs and "
            f"weights: values have {ring.FRACTION_BITS} bits of fraction."
        )
    return error


def _open_outputs(model: Path, rows: Reals) -> Reals:
    """ONNX Runtime's outputs of flat rows, one at a time: (rows, output size)."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = (1, *given.shape[1:])
    made = [session.run(None, {given.name: r.astype(np.float32).reshape(shape)})[0] for r in rows]
    return np.concatenate([np.asarray(one, np.float64).reshape(1, -1) for one in made])


def _sealed(program: SharedProgram, card: Card, part: bytes) -> bytes:
    info = shares_info(program.model, program.version, program.sharing, card.party)
    return identity.seal(card, part, info)


def _rounds(steps: Sequence[ProgramStep]) -> int:
    """Messages that wait for each other: see `protocol`."""
    compare, total = 9, 0
    for one in steps:
        total += 2 * len(one.rescalings)
        if one.operation == "relu":
            total += compare
        elif one.operation == "maximum":
            taps = one.window.counts[1] if one.window else 2
            total += compare * (taps - 1).bit_length()
    return total


def _failure(steps: Sequence[ProgramStep]) -> float:
    """Every rescaled element fails with |product| 2^-64 at most: docs/private.md."""
    elements = sum(sum(one.rescalings) for one in steps)
    return float(elements * ring.LIMIT * 2.0 ** (2 * ring.FRACTION_BITS - 64))


def _client(program: SharedProgram, contract: Contract) -> ClientFile:
    (given,), (made,) = contract.inputs, contract.outputs
    return ClientFile(
        kind=MPC,
        model=program.model,
        version=program.version,
        digest=sizes_of(program).digest.hex(),
        input=_tensor(given),
        output=_tensor(made),
        error=program.tolerance,
        plan={
            "input_limit": program.input_limit,
            "input_factor": program.input_factor,
            "cards": [asdict(card) for card in program.cards],
        },
    )


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(spec.name, tuple(int(axis) for axis in spec.shape[1:]))


def _write(
    contents: Contents,
    settings: PackageSettings,
    program: SharedProgram,
    sealed: Sequence[bytes],
    client: ClientFile,
) -> list[Path]:
    """Write the archives and the client's file: all of them or none."""
    store = settings.model_store
    packed = replace(
        settings,
        batch_size=settings.batch_size or _BATCH,
        max_batch_delay_ms=settings.max_batch_delay_ms or _DELAY_MS,
        max_workers=1,
        option=(),
    )
    stem = mar.file_name(contents.name, settings).removesuffix(".mar")
    with explained(store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store, prefix=".") as draft:
            text = Path(draft) / ARCHIVED
            text.write_bytes(client.to_bytes())
            made: list[tuple[Path, Path]] = []
            for number, data in enumerate(sealed):
                place = Path(draft) / str(number)
                place.mkdir()
                (place / PARTY_FILE).write_bytes(pack(program, data))
                party = _party(contents, place / PARTY_FILE, program.tolerance, text)
                built = mar.build(party, replace(packed, model_store=place))
                made.append((built, store / f"{stem}.party{number}.mar"))
            made.append((text, store / f"{stem}{SUFFIX}"))
            for source, target in made:
                os.replace(source, target)  # noqa: PTH105  pathlib's has the same name as ours
    return [target for _, target in made]


def _party(contents: Contents, file: Path, tolerance: float, client: Path) -> Contents:
    """One party's archive: nothing in it tells of weights, training or variants."""
    contract = replace(
        contents.contract,
        files=(file.name,),
        digest=digest_files(file),
        opset=0,
        tolerance=Tolerance(atol=tolerance, rtol=0.0),
        libraries=(),
    )
    return Contents(
        name=contents.name,
        handler=shipped.handler(HANDLER),
        model=file,
        contract=contract,
        golden=[],
        evidence={"private": MPC},
        assets=(client,),
        kind=WholeFile,
    )
