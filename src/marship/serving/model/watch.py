"""Rechecks batch invariance in production: runs some batched rows again alone.

Packaging proves that rows are independent; here this is checked with real requests. One row of a
batch is kept, and run again alone by a background thread once the batch's replies are ready: no
reply waits for it. At most one row is pending; it uses the same cores, so a concurrent call may
take longer, by the time of one row at most. If outputs differ, batching is disabled.
"""

import json
import logging
import queue
import random
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marship.contract import Arrays
from marship.contract.tolerance import agree, largest_difference
from marship.errors import LoadError, ModelError
from marship.serving.metrics import Metrics
from marship.serving.model.batch import Batcher

logger = logging.getLogger(__name__)

MARKER = "joining-ended.json"
"""In the extracted archive, which all workers of a version share, and which is new for each
registration."""
DEFAULT_SHARE = 0.001
LOOK_S = 5.0
"""How often a worker checks whether another one has disabled batching."""


def share_of(section: Mapping[str, Any]) -> float:
    """The share of batches of which a row is rechecked, from `marship:` in model-config.yaml.

    Raises:
        LoadError: It is not a number from 0 to 1.
    """
    share = section.get("recheck_share", DEFAULT_SHARE)
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise LoadError(
            "marship.recheck_share in model-config.yaml must be a number from 0 to 1, got "
            f"{share!r}. Leave it out for {DEFAULT_SHARE:g}."
        )
    return float(share)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a batch: inputs and outputs."""

    inputs: Arrays
    outputs: Arrays


class Watch:
    """Rechecks the batches of one model in one worker.

    Args:
        model: The model's name, for the log.
        folder: The extracted archive.
        batcher: The model's batcher.
        metrics: Counts the results.
        share: The share of batches to recheck, from 0, which is none, to 1.
    """

    def __init__(
        self, model: str, folder: Path, batcher: Batcher, metrics: Metrics, share: float
    ) -> None:
        self._model, self._marker = model, folder / MARKER
        self._batcher, self._metrics, self._share = batcher, metrics, share
        self._kept: _Row | None = None
        self._waiting: queue.Queue[_Row] = queue.Queue(1)
        batcher.on_mixed = self.end
        if share:
            batcher.on_joined = self.keep
        metrics.set_joining_ended(ended=False)
        self.look()

    def start(self) -> None:
        """Start the background thread, which runs until the worker exits."""
        threading.Thread(target=self._work, name="recheck", daemon=True).start()

    def keep(self, inputs: Arrays, outputs: Arrays) -> None:
        """Keep a row of a batch, if it is sampled; `pass_on` queues it."""
        if random.random() >= self._share:  # noqa: S311  no secret
            return
        contract = self._batcher.contract
        least = contract.bounds.get(contract.batch_axis or "", (1, None))[0]
        rows = len(next(iter(inputs.values())))
        start = random.randrange(max(rows - least, 0) + 1)  # noqa: S311
        part = slice(start, start + max(least, 1))
        self._kept = _Row(
            {name: array[part].copy() for name, array in inputs.items()},
            {name: array[part].copy() for name, array in outputs.items()},
        )

    def pass_on(self) -> None:
        """Queue the kept row, once the replies are ready, unless another one is pending."""
        row, self._kept = self._kept, None
        if row is not None and self._waiting.empty():
            self._waiting.put(row)

    def repeat(self, row: _Row) -> None:
        """Run one row alone, and disable batching if its outputs differ."""
        try:
            alone = self._batcher.run(row.inputs)
        except ModelError:
            logger.exception("%s failed to repeat a row of a joined call", self._model)
            return
        differs = not agree(row.outputs, alone, self._batcher.contract.tolerance)
        self._metrics.add_recheck(differs=differs)
        if differs:
            absolute, relative = largest_difference(row.outputs, alone)
            self.end(
                f"a row gave another output in a joined call than alone: {absolute:g} absolute, "
                f"{relative:g} relative"
            )

    def end(self, reason: str) -> None:
        """Disable batching permanently, here and in the version's other workers."""
        reference = uuid.uuid4().hex[:12]
        logger.error(
            "rows of %s are not independent: %s. Batching is disabled until it is registered "
            "again, reference %s",
            self._model, reason, reference,
        )  # fmt: skip
        self._stop()
        try:
            self._marker.write_text(json.dumps({"reason": reason, "reference": reference}) + "\n")
        except OSError as error:
            logger.error(  # noqa: TRY400  the reason is all there is to say
                "%s cannot be written: other workers of %s go on joining requests, and this one "
                "will after a restart: %s",
                self._marker, self._model, error,
            )  # fmt: skip

    def look(self) -> None:
        """Disable batching if another worker of this version has disabled it."""
        if self._batcher.joins and self._marker.exists():
            logger.warning("batching of %s is disabled by %s", self._model, self._marker)
            self._stop()

    def _stop(self) -> None:
        self._batcher.joins = False
        self._batcher.on_joined = None
        self._metrics.set_joining_ended(ended=True)

    def _work(self) -> None:
        while True:
            try:
                self.repeat(self._waiting.get(timeout=LOOK_S))
            except queue.Empty:
                self.look()
            except Exception:  # the thread must survive an error in one comparison
                logger.exception("%s failed to compare a row of a joined call", self._model)
