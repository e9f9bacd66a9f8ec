"""Measures candidates: each is packed, served, asked and loaded, and its server ended."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marship import storage
from marship.contract import Contract
from marship.errors import LoadError, MarshipError, PackageError, StorageError
from marship.operate.tune import answers, load, served
from marship.operate.tune.answers import SampleRequest
from marship.operate.tune.candidate import DIRECT, TORCHSERVE, Candidate
from marship.operate.tune.figures import Demands, LoadSlice, Measured
from marship.operate.tune.search import ToMeasure
from marship.operate.tune.served import ServedCandidate
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.variants import TunedArchive
from marship.serving.formats.golden import GoldenRequest

_LEAST_S, _MOST_S = 1.0, 10.0
_ENOUGH = 200
"""Answers in a slice, of which two are slower than p99; fewer only where they take seconds."""
_WARM_S = {DIRECT: 0.0, TORCHSERVE: 3.0}
"""At least: Java compiles hot code late."""
_END_S = 0.5
_STARTUP_S = 120.0
"""TorchServe's default for startupTimeout."""


@dataclass
class Bench:
    """Where candidates are measured.

    Attributes:
        source: The archive.
        shipped: Its own settings.
        samples: The requests.
        settings: The load.
        demands: The limits.
        folder: For servers' homes and archives.
        slice_s: The length of a slice.
        references: The shipped settings' responses.
        start_s: The longest that a server took to start.
        ask_s: The longest that one took to respond to all requests, one after the other.
        stretch: How many times of its length a slice takes, until all is answered.
    """

    source: TunedArchive
    shipped: Candidate
    samples: Sequence[SampleRequest]
    settings: TuneSettings
    demands: Demands
    folder: Path
    slice_s: float = _LEAST_S
    references: list[GoldenRequest] = field(default_factory=list)
    start_s: float = 0.0
    ask_s: float = 0.0
    stretch: float = 1.0

    def prepare(self) -> None:
        """Ask the shipped settings all requests, and see how long a slice must be.

        Raises:
            LoadError: The archive does not serve as it is.
            DataError: A request is refused.
        """
        with self.serving(self.shipped) as (model, _):
            self.references = self._asked(model)
            before = time.monotonic()
            first = self.load(model, _LEAST_S)
            if not self.demands.is_hopeless(first, 0.0):  # a finalist is not so far behind
                self.stretch = (time.monotonic() - before) / _LEAST_S
        waiting = self.settings.waiting_clients
        rate = self.settings.rate or max(first.rps, 1000 * waiting / first.p99_ms)
        self.slice_s = min(_MOST_S, max(_LEAST_S, _ENOUGH / rate))

    def measure(self, wanted: ToMeasure) -> Measured:
        """Serve a candidate, compare its responses, and load it.

        Raises:
            StorageError: The disk is full.
        """
        try:
            with self.serving(wanted.candidate) as (model, contract):
                return self._measured(model, wanted, contract)
        except StorageError:  # the machine's fault and not the candidate's
            raise
        except (MarshipError, OSError) as error:
            return Measured(wanted.candidate, fault=f"it does not serve: {error}")

    @contextmanager
    def serving(self, candidate: Candidate) -> Iterator[tuple[ServedCandidate, Contract]]:
        """The candidate on a server of its own; the shipped settings are the archive as it is.

        Raises:
            MarshipError: It cannot be packed, or does not serve.
        """
        archive = self.source.archive
        startup_s = float(archive.config.get("startupTimeout") or _STARTUP_S)
        serve = served.torchserve if candidate.host == TORCHSERVE else served.direct
        with (
            storage.explained(self.folder),
            tempfile.TemporaryDirectory(dir=self.folder) as place,
        ):
            if candidate != self.shipped:
                archive = self.source.write(candidate, Path(place) / archive.path.name)
            if archive.contract is None:
                raise PackageError(f"{archive.path} must be an archive of marship, got another.")
            before = time.monotonic()
            with serve(archive.path, Path(place), startup_s) as model:
                self.start_s = max(self.start_s, time.monotonic() - before)
                yield model, archive.contract

    def _measured(self, model: ServedCandidate, wanted: ToMeasure, contract: Contract) -> Measured:
        shipped = self.source.archive.contract or contract
        got = self._asked(model)
        same = answers.unchanged(self.references, got, shipped, contract)
        warm_s = max(self.slice_s / 2, _WARM_S[wanted.candidate.host])
        first = self.load(model, warm_s)
        if self.demands.is_hopeless(first, wanted.least_score):  # perhaps of another program
            first = self.load(model, warm_s)
        is_out = same < self.demands.min_quality
        if is_out or self.demands.is_hopeless(first, wanted.least_score):
            memory = model.memory_mb()
            return Measured(wanted.candidate, (first,), memory, same, is_hopeless=not is_out)
        slices = tuple(self.load(model, self.slice_s, n) for n in range(wanted.slices))
        return Measured(wanted.candidate, slices, model.memory_mb(), same)

    def _asked(self, model: ServedCandidate) -> list[GoldenRequest]:
        before = time.monotonic()
        got = list(answers.ask(model.endpoint, self.samples))
        self.ask_s = max(self.ask_s, time.monotonic() - before)
        return got

    def serving_s(self, servers: int, slices: float) -> float:
        """About how long servers take that are started, and get so many slices of load each."""
        return servers * (self.start_s + _END_S + slices * self.stretch * self.slice_s)

    def measuring_s(self, slices: int) -> float:
        """About how long it takes to measure a candidate; the first look is half a slice."""
        return self.serving_s(1, slices + 0.5) + self.ask_s

    def load(self, model: ServedCandidate, seconds: float, number: int = 0) -> LoadSlice:
        """A slice of the load that is asked for; the number draws when requests are due.

        Raises:
            LoadError: The server ended.
        """
        if self.settings.rate is not None:
            return self.at_rate(model, self.settings.rate, seconds, number)
        clients = self.settings.waiting_clients
        with _explained():
            return load.closed(model.endpoint, self._wires(model), clients, seconds)

    def at_rate(
        self, model: ServedCandidate, rate: float, seconds: float, number: int = 0
    ) -> LoadSlice:
        """A slice of requests at a rate.

        Raises:
            LoadError: The server ended.
        """
        with _explained():
            return load.at_rate(model.endpoint, self._wires(model), rate, seconds, seed=number)

    def _wires(self, model: ServedCandidate) -> list[bytes]:
        return [model.endpoint.request(one.body, one.content_type) for one in self.samples]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoadError(f"the server must go on under load, got: {error}") from error
