"""A plan in place of an ONNX Runtime session: loaded, verified and replayed, all encrypted."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime as ort

from marship.contract import GOLDEN_FILE, Arrays, Contract, GoldenCase, read_golden
from marship.contract.tolerance import agree, largest_difference, used_share
from marship.errors import LoadError, MalformedError, ModelError
from marship.serving.model.sealed import Opener
from marship.serving.model.session import Session, SessionSettings
from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.evaluate import EvaluationKeys, Evaluator
from marship.serving.private.plan import HePlan
from marship.serving.private.public import PublicPlan

_MOST_ROWS = 4
"""Of the golden cases: an encrypted row takes up to a second."""


class EncryptedSession(Session):
    """A plan that computes on ciphertexts, and on nothing else.

    Args:
        folder: The extracted archive.
        contract: The model's; its only file is the plan.
        settings: Of the worker.
        opener: Decrypts the file if it is sealed.

    Raises:
        LoadError: The file is missing, modified, or no plan.
        SealError: The sealed file cannot be decrypted.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        settings: SessionSettings,
        opener: Opener | None = None,
    ) -> None:
        self.contract, self.sample, self.is_shared = contract, {}, False
        self.settings = replace(settings, intra_op_threads=1)  # SEAL computes on one
        self._folder, self._opener = folder, opener
        (name,) = contract.files
        try:
            data = opener.open(name).tobytes() if opener else (folder / name).read_bytes()
        except OSError as error:
            raise LoadError(f"{name} must be in the archive, got: {error.strerror}.") from error
        if hashlib.sha256(data).hexdigest() != contract.digest:
            raise LoadError(f"{name} must be as it was packaged, got another. Package it again.")
        self.plan = HePlan.from_bytes(data)
        self.evaluator = Evaluator(self.plan)
        self.public = PublicPlan.of(self.plan, contract.digest)

    def run(self, inputs: Arrays, options: ort.RunOptions | None = None) -> Arrays:
        """Refuse: nothing here computes on plain values.

        Raises:
            ModelError: Always.
        """
        del inputs, options
        raise ModelError("an encrypted model must be asked encrypted, got plain tensors.")

    def renew(self, settings: SessionSettings) -> bool:
        """Nothing depends on the number of workers: SEAL computes on one thread."""
        self.settings = replace(settings, intra_op_threads=1)
        return True

    def replay_golden(self, source: Path | BinaryIO) -> list[float]:
        """Ask for rows of the golden cases encrypted, with keys made for it.

        Returns:
            The seconds of each.

        Raises:
            LoadError: An answer differs from the reference by more than the tolerance.
        """
        try:
            cases = read_golden(source)
        except ModelError as error:
            raise LoadError(f"{GOLDEN_FILE} must replay, got: {error}") from error
        secret, seconds = SecretKey(self.plan.ring), []
        loaded = keys.loaded(self.public, keys.generate(self.public, secret))
        for case in islice(_rows(cases), _MOST_ROWS):
            started = time.perf_counter()
            outputs = self._asked(case, secret, loaded)
            seconds.append(time.perf_counter() - started)
            self.drift = max(self.drift, used_share(outputs, case.outputs, self.contract.tolerance))
            if not agree(outputs, case.outputs, self.contract.tolerance):
                absolute, _ = largest_difference(outputs, case.outputs)
                raise LoadError(
                    f"a golden case must agree within {self.contract.tolerance} when it is asked "
                    f"encrypted, got a difference of {absolute:g}. Package the model again."
                )
        return seconds

    def _asked(self, case: GoldenCase, secret: SecretKey, loaded: EvaluationKeys) -> Arrays:
        (row,) = case.inputs.values()
        ((name, wanted),) = case.outputs.items()
        slots = self.public.packed(row.astype(np.float64).ravel())
        try:
            answer = self.evaluator.run(loaded, secret.encrypt(slots))
            found = secret.decrypt(answer, self.public.level)
        except MalformedError as error:
            raise LoadError(f"{GOLDEN_FILE} must replay encrypted, got: {error}") from error
        return {name: self.public.unpacked(found).reshape(wanted.shape)}


def _rows(cases: list[GoldenCase]) -> Iterator[GoldenCase]:
    """Each row of the cases as one of its own."""
    for case in cases:
        count = min(len(array) for array in (*case.inputs.values(), *case.outputs.values()))
        for row in range(count):
            yield GoldenCase(
                {name: array[row : row + 1] for name, array in case.inputs.items()},
                {name: array[row : row + 1] for name, array in case.outputs.items()},
            )
