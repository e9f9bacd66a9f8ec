"""Tunes an archive: searches, compares the finalists with the shipped settings, and writes."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from marship import storage
from marship.errors import PackageError, SealError, UsageError
from marship.operate.tune import answers, report, turns, verdict
from marship.operate.tune.answers import SampleRequest
from marship.operate.tune.bench import Bench
from marship.operate.tune.candidate import Candidate, Choices
from marship.operate.tune.figures import Demands, LoadSlice, Measured
from marship.operate.tune.record import MeasurementFile
from marship.operate.tune.report import Tuned
from marship.operate.tune.search import FINALISTS, Search, ToMeasure
from marship.operate.tune.served import ServedCandidate
from marship.operate.tune.settings import TuneSettings
from marship.operate.tune.turns import TurnsResult
from marship.operate.tune.variants import TunedArchive
from marship.serving.model import keysource
from marship.serving.model.session import usable_cores
from marship.trust import archive as archives
from marship.version import VERSION

_REPORT_S, _LOOK_S = 3.0, 0.5
_MOST_TURNS_SHARE = 0.35
_CALM, _CALM_ROUNDS = 0.7, 5
"""Of the shipped throughput: the rate at which p99 is compared where clients wait."""
Tell = Callable[[str], None]


def tune(
    path: str | Path, requests: str | Path, settings: TuneSettings, tell: Tell = lambda _: None
) -> Tuned:
    """Find the settings of an archive that serve best on this machine, and write them to it.

    Args:
        path: The archive.
        requests: A file with a request's body, or a folder of such files.
        settings: The load, the limits and the time.
        tell: Gets a line for each measurement.

    Raises:
        UsageError: A setting, the archive's path or the requests are invalid, or the minutes are
            too few for the archive on this machine.
        PackageError: It is not an archive of marship, or was replaced meanwhile.
        SealError: It is sealed, and there is no key.
        StorageError: The disk is full.
        DataError: A request is refused, or earlier measurements are not readable.
        LoadError: The archive does not serve as it is.
    """
    began = time.monotonic()
    settings.check()
    _check_target(settings.out or Path(path))
    with storage.temporary("marship-tune") as folder:
        run = _Tuning.of(Path(path), Path(requests), settings, folder, tell)
        return run.run(began)


@dataclass
class _Tuning:
    """A run of it."""

    bench: Bench
    grid: list[Candidate]
    recorded: MeasurementFile
    folder: Path
    tell: Tell
    busy: float

    @classmethod
    def of(
        cls, path: Path, requests: Path, settings: TuneSettings, folder: Path, tell: Tell
    ) -> "_Tuning":
        archive = archives.read(path)
        if archive.contract is None:
            raise PackageError(f"{path} must be an archive of marship, got one without a contract.")
        if archive.sealed and keysource.tried(None) is None:
            raise SealError(
                f"{path} must be tuned with the key that its model is sealed with, got none. Run: "
                f"{keysource.SOURCE_VARIABLE}=file:PATH marship tune {path} ..."
            )
        samples = answers.read(requests)
        source = TunedArchive.of(archive, settings.run, usable_cores())
        demands = Demands(
            settings.p99_ms, settings.min_quality, settings.memory_mb,
            is_open=settings.rate is not None,
        )  # fmt: skip
        shipped = source.shipped(settings.host[0])
        joins = archive.contract.batch_axis is not None
        waiting = settings.waiting_clients if settings.rate is None else 64
        choices = Choices(
            (source.variants.own, *source.variants.others),
            source.cores,
            waiting if joins else 1,
            settings.host,
            shipped.delay_ms,
        )
        results = settings.results or Path(f"{path.stem}-tune")
        recorded = MeasurementFile(results, _key(source, samples, settings))
        bench = Bench(source, shipped, samples, settings, demands, folder)
        busy = psutil.cpu_percent(_LOOK_S) / 100 * (psutil.cpu_count() or 1)
        return cls(bench, choices.grid(), recorded, results, tell, busy)

    def run(self, began: float) -> Tuned:
        """Search, compare, write."""
        settings = self.bench.settings
        if self.recorded.is_replaced:
            self.tell("earlier measurements were of another archive or load, and are replaced")
        self.bench.prepare()
        self.bench.source.check()
        self._check_minutes(time.monotonic() - began)
        until = began + 60 * settings.minutes - _REPORT_S
        search = Search(
            self.grid, self.bench.shipped, self.bench.demands, self.bench.source.cores,
            is_late=lambda wanted: self._is_late(wanted, until),
        )  # fmt: skip
        self._search(search)
        compared, calm = self._compare(search.finalists, until)
        found = turns.winner(compared)
        target = self._write(found)
        done = Tuned(
            archive=target,
            is_changed=found is not None,
            shipped=self.bench.shipped,
            verdict=verdict.judge(
                tuple(search.seen.values()),
                self.bench.shipped,
                compared,
                self.bench.demands,
                settings,
            ),
            winner=found,
            compared=tuple(compared),
            calm=calm,
            measured=tuple(search.seen.values()),
            not_tried=tuple(report.not_tried(search, self.bench.source, settings)),
            grid=len(self.grid),
            busy=self.busy,
            cores=self.bench.source.cores,
            demands=self.bench.demands,
            load=settings.load,
            slice_s=self.bench.slice_s,
            seconds=time.monotonic() - began,
            minutes=settings.minutes,
            folder=self.folder,
        )
        report.write(done)
        return replace(done, seconds=time.monotonic() - began)  # what is told counts the picture

    def _search(self, search: Search) -> None:
        steps = search.steps()
        number = 0
        try:
            wanted = next(steps)
            while True:
                number += 1
                found = self.recorded.recorded(wanted)
                if found is None:
                    found = self.bench.measure(wanted)
                    self.bench.source.check()
                    self.recorded.add(found)
                if wanted.candidate == self.bench.shipped and found.fault:
                    raise PackageError(f"the archive must serve as it is, got: {found.fault}")
                self.tell(report.line(number, found, self.bench.demands))
                wanted = steps.send(found)
        except StopIteration:
            return

    def _check_minutes(self, took_s: float) -> None:
        """Check that the shipped settings and one candidate can be measured, and compared.

        Raises:
            UsageError: There is no time for it; what an earlier run measured needs none.
        """
        looks_s = 0 if self.recorded.known else 2 * self.bench.measuring_s(1)
        least_s = took_s + looks_s + self._least_turns_s(1) + _REPORT_S
        minutes = self.bench.settings.minutes
        if least_s > 60 * minutes:
            raise UsageError(
                f"--minutes must be at least {math.ceil(least_s / 6) / 10:g} for this archive and "
                f"load on this machine, where a server takes {self.bench.start_s:.1f} s to start "
                f"and a slice of load {self.bench.slice_s:.1f} s, got {minutes:g}. Allow more."
            )

    def _is_late(self, wanted: ToMeasure, until: float) -> bool:
        """Whether a measurement would leave too little time for the turns."""
        needed_s = 0 if self.recorded.knows(wanted) else self.bench.measuring_s(wanted.slices)
        return time.monotonic() + needed_s + self._turns_s() > until

    def _least_turns_s(self, finalists: int) -> float:
        """About how long the fewest turns take, and to warm up for them."""
        return self.bench.serving_s(finalists + 1, turns.LEAST_ROUNDS + 1)

    def _turns_s(self) -> float:
        """About how long turns may take: those of all finalists, if that is not too much."""
        whole = self.bench.serving_s(FINALISTS + 1, turns.ROUNDS + 1) + self._calm_s()
        most = _MOST_TURNS_SHARE * 60 * self.bench.settings.minutes
        return max(self._least_turns_s(1), min(whole, most))

    def _calm_s(self) -> float:
        """About how long both at a rate take."""
        return 2 * _CALM_ROUNDS * self.bench.slice_s

    def _compare(
        self, finalists: Sequence[Measured], until: float
    ) -> tuple[list[TurnsResult], dict[str, LoadSlice]]:
        """The finalists beside the shipped settings, all served at once."""
        if not finalists:
            return [], {}
        left_s = until - time.monotonic()
        while len(finalists) > 1 and self._least_turns_s(len(finalists)) > left_s:
            finalists = finalists[:-1]
        self.tell(f"the best {len(finalists)} and the shipped settings in turns")
        with ExitStack() as stack:
            models = {
                one: stack.enter_context(self.bench.serving(one))[0]
                for one in [self.bench.shipped, *(found.candidate for found in finalists)]
            }
            loads = {
                one: partial(self.bench.load, model, self.bench.slice_s)
                for one, model in models.items()
            }
            turns.in_turns(loads, 1)  # warms them up
            late = until - (len(finalists) + 1) * self.bench.slice_s - self._calm_s()
            found = turns.in_turns(loads, turns.ROUNDS, lambda: time.monotonic() > late)
            compared = [
                turns.compare(
                    one.candidate,
                    found[one.candidate],
                    found[self.bench.shipped],
                    self.bench.demands,
                )
                for one in finalists
            ]
            return self._held(compared, models, until)

    def _held(
        self,
        compared: list[TurnsResult],
        models: Mapping[Candidate, ServedCandidate],
        until: float,
    ) -> tuple[list[TurnsResult], dict[str, LoadSlice]]:
        """Hold the winner to its p99 at a rate, where there is time; else the next is one."""
        limit = self.bench.demands.p99_ms
        while (best := turns.winner(compared)) is not None:
            calm = {} if time.monotonic() + self._calm_s() > until else self._calm(models, best)
            if not calm or not calm["winner"].p99_ms > limit >= calm["shipped"].p99_ms:
                return compared, calm
            compared = [
                turns.missed(one, calm["winner"], limit) if one is best else one for one in compared
            ]
        return compared, {}

    def _calm(
        self, models: Mapping[Candidate, ServedCandidate], best: TurnsResult
    ) -> dict[str, LoadSlice]:
        """Winner and shipped settings at a rate below what the latter can do; by the median p99."""
        if self.bench.demands.is_open:
            return {}
        rate, slice_s = _CALM * best.shipped_rps.median, self.bench.slice_s
        pair = {"shipped": self.bench.shipped, "winner": best.candidate}
        loads = {
            one: partial(self.bench.at_rate, models[one], rate, slice_s) for one in pair.values()
        }
        found = turns.in_turns(loads, _CALM_ROUNDS)
        return {
            name: sorted(found[one], key=lambda each: each.p99_ms)[_CALM_ROUNDS // 2]
            for name, one in pair.items()
        }

    def _write(self, found: TurnsResult | None) -> Path:
        """Write the winner's archive; without one nothing changes."""
        source = self.bench.source
        if found is None:
            return source.archive.path
        source.check()
        target = self.bench.settings.out or source.archive.path
        with storage.replacing(target) as draft:
            source.write(found.candidate, draft)
        return target


def _check_target(path: Path) -> None:
    """Check where the archive will be written before anything is measured.

    Raises:
        UsageError: It cannot be written there.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--out must lie in a folder that is there, got {path}. Make it first.")
    if path.is_dir() or not os.access(folder, os.W_OK):
        found = "a folder" if path.is_dir() else "a folder that this user cannot write to"
        raise UsageError(
            f"{path} must be a file that can be written, got {found}. Name one with --out."
        )


def _key(
    source: TunedArchive, samples: Sequence[SampleRequest], settings: TuneSettings
) -> dict[str, Any]:
    """What measurements depend on."""
    bodies = hashlib.sha256()
    for one in samples:
        bodies.update(f"{one.name} {one.content_type} {len(one.body)} ".encode() + one.body)
    files = hashlib.sha256()
    for member in source.archive.members:
        files.update(f"{member.name} {member.sha256} ".encode())
    return {
        "marship": VERSION,
        "archive": files.hexdigest(),
        "requests": bodies.hexdigest(),
        "load": settings.load,
        "hosts": list(settings.host),
        "variants": [source.variants.own, *source.variants.others],
        "cores": source.cores,
    }
