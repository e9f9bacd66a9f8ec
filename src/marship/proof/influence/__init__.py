"""Whether rows of one call can influence each other, by the operators that lead to the outputs.

Runs of a model show an influence only for the values that were tried: a mean over all rows shows
where it meets a threshold, and nowhere else. So the rows are followed through the graph: it is run
twice, with different numbers of requests, to learn the shapes of all tensors and the values of
those that do not depend on the inputs, and each operator's definition tells where its outputs hold
the rows. What has no rule, such as a custom operator, is left to runs; the rows of its outputs are
taken to be on the axis that grows with their number.

trace.py    the tensors of a call
loops.py    the body of a loop as a model of its own
tensor.py   where a tensor holds the rows
moves.py    rules of operators that move elements
sums.py     rules of operators that compute with them
rules.py    the rule of each operator
flow.py     follows the rows through the graph
"""

from collections.abc import Sequence
from pathlib import Path

from marship.contract import Arrays
from marship.proof.influence.flow import Flow
from marship.proof.influence.trace import traced, whole

_PAIRS = ((3, 5), (2, 3), (1, 2))
"""Numbers of requests in two runs: primes, so that no axis holds rows by coincidence."""


def mixing(path: Path, parts: Sequence[Arrays], libraries: Sequence[Path] = ()) -> tuple[str, ...]:
    """Why rows of one call influence each other, a sentence for each operator; empty if none does.

    Args:
        path: The ONNX file.
        parts: Requests, each of the same number of rows, on the first axis of all inputs.
        libraries: Files with its custom operators.
    """
    counts = next((pair for pair in _PAIRS if pair[1] <= len(parts)), None)
    model = whole(path)
    if counts is None or model is None:
        return ()
    traces = [traced(model, parts[:count], libraries) for count in counts]
    found: dict[str, None] = {}
    for trace, other in (traces, traces[::-1]):
        if trace is None or other is None:
            return ()
        if trace.rows > 1:
            flow = Flow(trace, other)
            flow.walk()
            found |= dict.fromkeys(flow.mixing)
    return tuple(found)
