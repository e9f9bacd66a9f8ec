"""Whether rows of one call can influence each other, by the operators that lead to the outputs.

Runs of a model show an influence only for the values that were tried: a mean over all rows shows
where it meets a threshold, and nowhere else. So the rows are followed through the graph: it is run
twice, with different numbers of requests, to learn the shapes of all tensors and the values of
those that do not depend on the inputs, and each operator's definition tells where its outputs hold
the rows. From these two runs, calls of further numbers of rows are worked out and followed, too.
An operator without a rule, such as a custom one, may do anything with them, so the rows are not
joined. Branches that sizes choose are followed either way, and of loops any iteration.

trace.py    the tensors of a call
calls.py    calls of any number of rows
lines.py    values that follow the number of rows, and those that do not
loops.py    the body of a loop as a model of its own
numbers.py  operators that move rows by indices, which are numbered to see where they go
tensor.py   where a tensor holds the rows
moves.py    rules of operators that move elements
sums.py     rules of operators that compute with them
rules.py    the rule of each operator
flow.py     follows the rows through the graph
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from marship.contract import Arrays
from marship.proof.influence.calls import Calls
from marship.proof.influence.flow import Flow
from marship.proof.influence.tensor import Mixes, TooLarge, Unknown
from marship.proof.influence.trace import Trace, traced, whole

_PAIRS = ((3, 5), (2, 3), (1, 2))
"""Numbers of requests in two runs: primes, so that no axis holds rows by coincidence."""
_COUNTS = (*range(2, 18), *(n + by for n in (32, 64, 128, 256, 512) for by in (-1, 0, 1)))
"""Numbers of requests in calls that are worked out in any case."""
_FEW = 9
"""Up to how many requests no call may be too large to be followed."""
_MOST = 4096
"""Up to how many requests those are looked for from which on a graph computes otherwise."""
_ALONE = "what the graph computes from sizes alone does not run by itself"
_MOST_VARIANTS = 16


def mixing(
    path: Path,
    parts: Sequence[Arrays],
    libraries: Sequence[Path] = (),
    *,
    is_usual: bool = True,
) -> tuple[str, ...]:
    """Why rows of one call influence each other, or may; empty if none does.

    Args:
        path: The ONNX file.
        parts: Requests, each of the same number of rows, on the first axis of all inputs.
        libraries: Files with its custom operators.
        is_usual: Whether the requests have the usual sizes, at which no tensor is empty; what is
            empty at those shows nothing.

    Returns:
        A sentence for each operator.
    """
    counts = next((pair for pair in _PAIRS if pair[1] <= len(parts)), None)
    model = whole(path)
    if counts is None or model is None:
        return ()
    if model.graph.sparse_initializer:
        return ("the graph has sparse constants, which are not followed",)
    found: dict[str, None] = {}
    variants = [*_variants(model, parts, counts, libraries)]
    if not variants:
        return ("the graph does not run with all its tensors as outputs, to follow the rows",)
    if len(variants) > _MOST_VARIANTS:
        return ("the graph has more branches than can be followed",)
    for first, second in variants:
        try:
            found |= dict.fromkeys(_followed(first, second, is_usual=is_usual))
        except (Mixes, Unknown) as error:
            found[str(error) or _ALONE] = None
        except TooLarge:
            found["the graph computes too much by itself, or by index, to be followed"] = None
    return tuple(found)


def _followed(first: Trace, second: Trace, *, is_usual: bool) -> Iterator[str]:
    """Why rows of calls through the same branches influence each other, or may."""
    pairs = [(first, second), (second, first)]
    for trace, other in pairs:
        flow = Flow(trace, other, is_usual=is_usual)
        if trace.rows > 1:
            flow.walk()
        yield from flow.mixing
        if flow.mixing:
            return
    calls = Calls.of(first, second)
    known, alone = calls.at(second.rows), calls.at(1)
    calls.check_sizes(alone)
    counts = [1, *_COUNTS]
    for rows in counts:
        if rows == _COUNTS[-1] and is_usual:  # loops are known by now
            counts += sorted(calls.changing(_MOST) - {*counts})
        if rows == second.rows:
            continue
        try:
            pair = (calls.at(rows), known) if rows > 1 else (known, alone)
            flow = Flow(*pair, is_usual=is_usual)
            flow.walk()
        except TooLarge:
            if rows <= _FEW:
                raise
            continue
        yield from flow.mixing
        if flow.mixing:
            return


def _variants(
    model: ModelProto, parts: Sequence[Arrays], counts: Sequence[int], libraries: Sequence[Path]
) -> Iterator[tuple[Trace, Trace]]:
    """Two calls through the branches that they take, and through each other one that runs.

    Where all sizes but the number of rows are fixed, the other branches are never taken.
    """
    # the larger call repeats requests of the smaller: nothing differs but the number
    calls = [[parts[number % counts[0]] for number in range(count)] for count in counts]
    queue: list[Mapping[str, bool]] = [{}]
    for forced in queue:
        first, second = (traced(model, call, libraries, forced) for call in calls)
        if first is None or second is None:
            continue
        yield first, second
        if _has_sizes(model) and len(queue) <= _MOST_VARIANTS:
            known = {name for one in queue for name in one}
            queue += [
                {**forced, name: not way} for name, way in first.taken.items() if name not in known
            ]


def _has_sizes(model: ModelProto) -> bool:
    """Whether inputs vary in more than the number of rows."""
    return any(
        not axis.HasField("dim_value")
        for value in model.graph.input
        for axis in value.type.tensor_type.shape.dim[1:]
    )
