"""How a balancer's choice of node tells in the times of a fleet, in simulated time.

    python benchmarks/fleet.py

Nodes with two workers each get random arrivals, and each request goes to a node: at random, to the
better of two drawn at random (Mitzenmacher 2001), to the one with the fewest in hand, or always to
the one that its client's connection is at. Prints the table of docs/scale.md: 99 of 100 requests
took at most so many times the mean call.
"""

import argparse
import heapq
import random
from collections.abc import Callable

import numpy as np

NODES, WORKERS, REQUESTS, CONNECTIONS_A_NODE = 100, 2, 200_000, 8
BUSY = (0.5, 0.7, 0.85)

InHand = list[int]
Choose = Callable[[random.Random, InHand], int]


def at_random(rng: random.Random, in_hand: InHand) -> int:
    """Any node."""
    return rng.randrange(len(in_hand))


def of_two(rng: random.Random, in_hand: InHand) -> int:
    """The one of two that has less to do."""
    return min(rng.randrange(len(in_hand)), rng.randrange(len(in_hand)), key=in_hand.__getitem__)


def fewest(_rng: random.Random, in_hand: InHand) -> int:
    """The one that has least to do, the first of several."""
    return in_hand.index(min(in_hand))


class Pinned:
    """Clients' connections, each at one node for ever, chosen at random as clients are many."""

    def __init__(self, nodes: int) -> None:
        drawn = random.Random(2)  # noqa: S311  a simulation
        self._nodes = [drawn.randrange(nodes) for _ in range(nodes * CONNECTIONS_A_NODE)]

    def __call__(self, rng: random.Random, _in_hand: InHand) -> int:
        """The node of any of the connections."""
        return rng.choice(self._nodes)


def times(choose: Choose, nodes: int, busy: float) -> list[float]:
    """How long each request took, in mean calls."""
    rng = random.Random(1)  # noqa: S311  a simulation
    in_hand, took, now = [0] * nodes, list[float](), 0.0
    free = [[0.0] * WORKERS for _ in range(nodes)]  # when each worker is free, a heap a node
    ends: list[tuple[float, int]] = []
    for _ in range(REQUESTS):
        now += rng.expovariate(busy * nodes * WORKERS)
        while ends and ends[0][0] <= now:
            in_hand[heapq.heappop(ends)[1]] -= 1
        node = choose(rng, in_hand)
        end = max(now, free[node][0]) + rng.expovariate(1.0)
        heapq.heapreplace(free[node], end)
        heapq.heappush(ends, (end, node))
        in_hand[node] += 1
        took.append(end - now)
    return took


def main() -> None:
    """Simulate all ways to choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    nodes = parser.parse_args().nodes
    ways: dict[str, Choose] = {
        "the node of the client's connection": Pinned(nodes),
        "at random": at_random,
        "the better of two": of_two,
        "the fewest in hand": fewest,
    }
    print(f"| {nodes} nodes of {WORKERS} workers | {' | '.join(f'{b:.0%} busy' for b in BUSY)} |")
    print("|---|" + "---|" * len(BUSY))
    for name, choose in ways.items():
        cells = (f"{np.percentile(times(choose, nodes, busy), 99):.1f}" for busy in BUSY)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
