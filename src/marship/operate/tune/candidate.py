"""One way to serve an archive, and the grid of all ways that are tried."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marship import profiles

DIRECT, TORCHSERVE = "direct", "torchserve"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DELAYS_MS = (1, 5)
_OVER = 2
"""Threads of all workers for each core, at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to serve a model.

    Attributes:
        variant: Which of the model's variants.
        workers: How many processes.
        threads: Threads of one call in each.
        batch: The most requests of a call.
        delay_ms: How long a batch waits to fill; at the direct address nothing waits.
        spinning: Whether idle threads spin.
        host: The address: `direct` or `torchserve`.
    """

    variant: str
    workers: int
    threads: int
    batch: int
    delay_ms: int = 1
    spinning: bool = False
    host: str = DIRECT

    @classmethod
    def of(cls, config: Mapping[str, Any], variant: str, cores: int, host: str) -> "Candidate":
        """The way that a model-config.yaml describes, on a machine with so many cores.

        Threads that are left out are the cores divided by workers, as in a session.
        """
        section = config.get("marship") or {}
        workers = int(config.get("minWorkers") or 1)
        return cls(
            variant=variant,
            workers=workers,
            threads=int(section.get("intra_op_threads") or max(1, cores // workers)),
            batch=int(config.get("batchSize") or 1),
            delay_ms=int(config.get("maxBatchDelay") or 1),
            spinning=bool(section.get("spinning", False)),
            host=host,
        )

    @property
    def profile(self) -> str:
        """The nearest batching profile: one by one, or together."""
        return "latency" if self.batch == 1 else "throughput"

    def config(self, base: Mapping[str, Any], cores: int) -> dict[str, Any]:
        """The model-config.yaml of this way; what it does not name stays as in `base`.

        Threads are left out where the rule, cores divided by workers, gives the same: the archive
        then also suits a machine with other cores, and `marship scale`.
        """
        most = max(self.workers, int(base.get("maxWorkers") or 1))
        section = {**(base.get("marship") or {}), "profile": self.profile}
        section["spinning"] = self.spinning
        section.pop("intra_op_threads", None)
        if self.threads != max(1, cores // self.workers) or most != self.workers:
            section["intra_op_threads"] = self.threads
        return {
            **base,
            "minWorkers": self.workers,
            "maxWorkers": most,
            "batchSize": self.batch,
            "maxBatchDelay": self.delay_ms,
            "marship": section,
        }

    def __str__(self) -> str:
        """`2 x 1 thread, batch 8`, with what else is not usual."""
        parts = [f"{self.workers} x {self.threads} thread{'s' * (self.threads > 1)}"]
        parts += ["spinning"] * self.spinning
        parts.append(f"batch {self.batch}")
        if self.host == TORCHSERVE:
            parts += [f"delay {self.delay_ms} ms", self.host]
        return ", ".join([self.variant, *parts])


@dataclass(frozen=True, slots=True)
class Choices:
    """What the grid is made of.

    Attributes:
        variants: Names of the model's variants.
        cores: Usable cores.
        most_batch: No more requests can be in a batch: clients that wait, or 1 where requests
            cannot be joined.
        hosts: The addresses.
        delay_ms: The shipped delay, which the direct address does not use.
    """

    variants: Sequence[str]
    cores: int
    most_batch: int
    hosts: Sequence[str] = (DIRECT,)
    delay_ms: int = 1

    def grid(self) -> list[Candidate]:
        """All ways, in a fixed order."""
        return [
            Candidate(variant, workers, threads, batch, delay_ms, spinning, host)
            for host, variant in itertools.product(self.hosts, self.variants)
            for workers, threads in self._divisions()
            for batch in self._batches()
            for delay_ms in self._delays(host, batch)
            for spinning in (False, True)
            if not spinning or (threads > 1 and workers < self.cores)  # else it changes nothing
        ]

    def _divisions(self) -> list[tuple[int, int]]:
        """Workers and threads of each."""
        counts = sorted({2**n for n in range(self.cores.bit_length())} | {self.cores})
        pairs = itertools.product(counts, counts)
        return [(w, t) for w, t in pairs if w * t <= _OVER * self.cores]

    def _batches(self) -> list[int]:
        """Up to the first that holds all that may wait: larger ones would be the same."""
        enough = next((batch for batch in BATCHES if batch >= self.most_batch), BATCHES[-1])
        return [batch for batch in BATCHES if batch <= enough]

    def _delays(self, host: str, batch: int) -> Sequence[int]:
        return DELAYS_MS if host == TORCHSERVE and batch > 1 else (self.delay_ms,)


def profile_of(candidate: Candidate) -> str:
    """The name of the profile that has exactly these batches; empty where none has.

    Example:
        >>> profile_of(Candidate("exported", workers=1, threads=1, batch=32))
        'throughput'
    """
    own = profiles.Profile(candidate.batch, candidate.delay_ms)
    return next((name for name, found in profiles.PROFILES.items() if found == own), "")
