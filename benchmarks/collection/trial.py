"""One model from its file to its answers, and the verdict."""

import dataclasses
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from collection.sample import Case, Given, NotRunError, Sample
from collection.served import AnsweredError, Served

from marship.contract import Array, Arrays
from marship.contract.tolerance import Tolerance, agree, largest_difference
from marship.errors import MarshipError

EQUAL, REFUSED, WRONG = "equal", "refused", "wrong"
TRACEBACK, NOT_RUN = "traceback", "not run by ONNX Runtime"
VERDICTS = (EQUAL, REFUSED, WRONG, TRACEBACK, NOT_RUN)
ALONE = "one by one"
_INTERNAL = re.compile(
    r"Traceback|"
    # an error that ended the process of the proof: the last line of its traceback
    r"must be loaded and run on a few inputs, got: [\w.]*(?:Error|Exception|Iteration|Warning)\b"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a model.

    Attributes:
        verdict: One of VERDICTS.
        remark: Why it was refused or wrong; else how it was asked.
        inputs: As the contract has them; empty where there is none.
        seconds: From the file to the first answer; None without an answer.
    """

    kind: str
    name: str
    verdict: str
    remark: str
    inputs: str = ""
    seconds: float | None = None


class _WrongError(Exception):
    """An answer that is not the reference's."""


def tried(sample: Sample, folder: Path) -> Outcome:
    """Package, load and ask the model; never raises."""
    outcome = Outcome(sample.kind, sample.name, EQUAL, "")
    try:
        given = sample.give(folder)
    except NotRunError as error:
        return replace(outcome, verdict=NOT_RUN, remark=_line(error))
    except Exception as error:  # told like any other, though it is the benchmark's own
        return replace(outcome, verdict=TRACEBACK, remark=_placed(error))
    started = time.perf_counter()
    try:
        served, how = _loaded(given, folder)
        outcome = replace(outcome, inputs=", ".join(map(str, served.contract.inputs)))
        for form, got, case in _asked(served, given.cases):
            if outcome.seconds is None:
                seconds = round(time.perf_counter() - started, 2)
                outcome = replace(outcome, seconds=seconds)
            _compare(form, got, case, served.contract.tolerance, given)
    except Exception as error:  # the verdict tells which
        verdict, remark = judged(error)
        return replace(outcome, verdict=verdict, remark=remark)
    words = (how, "batched" if served.contract.batch_axis else ALONE, sample.remark)
    return replace(outcome, remark=", ".join(filter(None, words)))


def judged(error: Exception) -> tuple[str, str]:
    """The verdict and the remark of an error on the way to an answer."""
    if isinstance(error, _WrongError):
        return WRONG, _line(error)
    if isinstance(error, AnsweredError):
        cause = f": {_placed(error.__cause__)}" if error.__cause__ else ""
        verdict = TRACEBACK if error.status >= 500 else REFUSED
        return verdict, f"{error.status}: {_line(error)}{cause if verdict == TRACEBACK else ''}"
    if isinstance(error, MarshipError) and not _INTERNAL.search(str(error)):
        return REFUSED, _line(error)
    return TRACEBACK, _placed(error)


def _placed(error: BaseException) -> str:
    """The error, and the line that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in place)
    return f"{type(error).__name__}: {_line(error)}{where}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600]


def _loaded(given: Given, folder: Path) -> tuple[Served, str]:
    """The served model, and how it was packed where the plain command did not do."""
    from marship import ExportSettings, PackageSettings, export

    source: str | Path = given.source
    example = folder / "example.npz"
    first = {k: v for k, v in given.cases[0].inputs.items() if isinstance(v, np.ndarray)}
    np.savez(example, **{k: v.astype(str) if v.dtype == object else v for k, v in first.items()})
    if given.export is not None:
        chosen = ExportSettings(**given.export)
        source = export(
            given.source, chosen, example=example, weights=given.weights, out=folder / "run"
        ).run_dir
    settings = PackageSettings(name="m", model_store=folder / "store")
    archive, how = _packed(source, settings, example, _missing(given.cases))
    try:
        return Served(archive, folder / "extracted"), how
    except MarshipError as error:
        raise type(error)(f"packed, and not loaded: {error}") from error


def _missing(cases: Sequence[Case]) -> str:
    """The setting that says that inputs hold NaN or infinity, which the default refuses."""
    arrays = [array for case in cases for array in case.inputs.values()]
    floats = [a for a in arrays if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if any(np.isinf(array).any() for array in floats):
        return "any"
    return "allow" if any(np.isnan(array).any() for array in floats) else "auto"


def _packed(
    source: str | Path,
    settings: Any,  # noqa: ANN401
    example: Path,
    missing: str,
) -> tuple[Path, str]:
    """The archive, with the flags that its user gives or messages advise, and those flags."""
    from marship import package

    fields, flags = {field.name for field in dataclasses.fields(settings)}, list[str]()
    if missing != "auto":
        settings = replace(settings, missing_values=missing)
        flags.append(f"--missing-values {missing}")
    advised = {"--example": {"example": example}, "--golden real": {"golden": "real"}}
    while True:
        try:
            return package(source, settings), " ".join(flags)
        except MarshipError as error:
            flag = next((f for f in advised if f in str(error) and f not in flags), None)
            if flag is None or not fields.issuperset(advised[flag]):
                raise
            settings = replace(settings, **advised[flag])
            flags.append(flag)


def _asked(served: Served, cases: Sequence[Case]) -> Iterator[tuple[str, Arrays, Case]]:
    """The answers in every format that can hold the inputs, and the rows of a batch together."""
    for case in cases:
        inputs = dict(case.inputs)
        if all(map(_in_json, inputs.values())):
            yield "JSON", served.named(inputs), case
            if served.contract.batch_axis is not None and (rows := _rows(case)):
                answers = served.joined([dict(row.inputs) for row in rows])
                for got, row in zip(answers, rows, strict=True):
                    yield "a batch of JSON", got, row
        yield "raw", served.raw(inputs), case
        if len(inputs) == 1 and len(served.contract.outputs) == 1:
            yield "npy", served.npy(inputs), case


def _in_json(array: Array) -> bool:
    """Whether lists can say the sizes: of nothing they say the first alone."""
    return array.size > 0 or np.shape(array.tolist()) == array.shape


def _rows(case: Case) -> list[Case]:
    """The case's rows as requests of their own; one row three times."""
    count = len(next(iter(case.inputs.values())))
    places = range(count) if count > 1 else [0] * (3 * count)

    def row(arrays: Any, place: int) -> Arrays:  # noqa: ANN401  a mapping of arrays
        return {name: array[place : place + 1] for name, array in arrays.items()}

    return [Case(row(case.inputs, place), row(case.outputs, place)) for place in places]


def _compare(form: str, got: Arrays, case: Case, tolerance: Tolerance, given: Given) -> None:
    """Compare an answer with the reference, within the contract's tolerance or the reference's.

    Raises:
        _WrongError: It is another.
    """
    missing = sorted(set(case.outputs) - set(got))
    if missing:
        raise _WrongError(f"in {form}, no output {', '.join(missing)}")
    own = Tolerance(given.atol, given.rtol)
    for name, wanted in case.outputs.items():
        has_words = got[name].dtype.kind == "f" and np.isinf(got[name]).any()
        want = {name: wanted if has_words else as_sent(wanted, form)}
        found = {name: got[name]}
        if not form.endswith("JSON") and _dtype(got[name]) != _dtype(wanted):
            raise _WrongError(f"in {form}, {name} is {got[name].dtype}, not {wanted.dtype}")
        if form.endswith("JSON") and got[name].size == wanted.size == 0:
            continue  # lists cannot say the sizes of nothing
        if not agree(found, want, tolerance) and not agree(found, want, own):
            raise _WrongError(f"in {form}, {name} {_difference(got[name], want[name])}")


def _dtype(array: Array) -> str:
    return "text" if array.dtype.kind in "OU" else array.dtype.name


def as_sent(wanted: Array, form: str) -> Array:
    """The reference as a format can tell it: JSON has neither NaN nor infinity, both are null."""
    if wanted.dtype.kind != "f" or not form.endswith("JSON"):
        return wanted
    return np.where(np.isfinite(wanted), wanted, np.nan).astype(wanted.dtype)


def _difference(got: Array, want: Array) -> str:
    if got.shape != want.shape:
        return f"has shape {got.shape}, not {want.shape}"
    if want.dtype.kind != "f":
        return f"is {got.ravel()[:4].tolist()}, not {want.ravel()[:4].tolist()}"
    absolute, relative = largest_difference({"": got}, {"": want})
    return f"differs by {absolute:.2g}, relatively {relative:.2g}"
