"""One of MPyC's three parties, with the MLP of private_cases.py: a peer of private_parties.py.

    python benchmarks/private_mpyc.py WEIGHTS.npz -M3 -I0     (and -I1, -I2)

MPyC parses the command line when it is imported, and listens on all interfaces: here, on loopback.
It connects without TLS, which costs it less than ours costs us. Party 0 computes a row for each
line of its input.
"""

import asyncio
import sys
import time
from typing import Any

import numpy as np

WEIGHTS = np.load(sys.argv.pop(1))
_server = asyncio.BaseEventLoop.create_server


def _on_loopback(self: Any, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:  # noqa: ANN401
    del host
    return _server(self, factory, "127.0.0.1", port, **more)


asyncio.BaseEventLoop.create_server = _on_loopback  # type: ignore[method-assign]

from mpyc.runtime import mpc  # noqa: E402  behind what it reads when it is imported


async def main() -> None:
    """For each row, once a line was read: print its milliseconds and its largest error."""
    number = mpc.SecFxp(40, 13)

    def given(array: np.ndarray) -> Any:  # noqa: ANN401  MPyC's
        return mpc.input(number.array(array.astype(float), integral=False), senders=0)

    await mpc.start()
    w0, b0, w1, b1 = (given(WEIGHTS[name]) for name in ("w0", "b0", "w1", "b1"))
    for row in WEIGHTS["rows"]:
        if mpc.pid == 0:
            sys.stdin.readline()  # the others wait for its input
        started = time.perf_counter()
        hidden = given(row[None]) @ w0 + b0
        output = await mpc.output((hidden * (hidden >= 0)) @ w1 + b1)
        took_ms = 1e3 * (time.perf_counter() - started)
        open_hidden = np.maximum(row @ WEIGHTS["w0"] + WEIGHTS["b0"], 0)
        wanted = open_hidden @ WEIGHTS["w1"] + WEIGHTS["b1"]
        print(took_ms, np.abs(np.array(output, float) - wanted).max(), flush=True)
    await mpc.shutdown()


mpc.run(main())
