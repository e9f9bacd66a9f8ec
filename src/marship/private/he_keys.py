"""A client's own keys: in memory or in a file, and new ones after a few failures."""

from pathlib import Path

from marship.errors import MalformedError, UsageError
from marship.private import key_file
from marship.private.key_file import ClientKeys
from marship.serving.private import keys
from marship.serving.private.ckks import SecretKey
from marship.serving.private.keys import KeySet
from marship.serving.private.public import PublicPlan

MOST_FAILURES = 3
"""After so many answers that do not decrypt, or wrong ones to known cases, new keys are made: each
may tell a server that watches the client something of the secret key (Li and Micciancio 2021,
IND-CPA-D)."""

Pair = tuple[SecretKey, KeySet]


class OwnKeys:
    """Keys for one plan, made when they are needed.

    Failures count for the keys and not for a process: those in a file are counted beside it, by
    all processes that use it.

    Args:
        plan: The plan.
        path: The key file; None keeps the keys in memory.

    Attributes:
        held: The keys in memory, if any.
    """

    def __init__(self, plan: PublicPlan, path: Path | None) -> None:
        self._plan, self._path = plan, path
        self.held: Pair | None = None
        self._stamp: object = None
        self._failures = 0

    def get(self) -> Pair:
        """The secret key and the evaluation keys: in memory, from the file, or new.

        Raises:
            UsageError: The file holds something else.
            StorageError: It cannot be written.
        """
        if self.held is None or self._is_replaced():
            found = key_file.read(self._path, self._plan.digest) if self._path else None
            self.held = self._made() if found is None else self._opened(found)
            self._stamp = key_file.stamp(self._path) if self._path else None
        return self.held

    def fail(self) -> None:
        """Count an answer that is none, or known to be wrong; after a few, forget the keys.

        Raises:
            StorageError: The count cannot be written.
        """
        if self._is_replaced():  # another process has made new keys: nothing is known of them
            self.held = None
            return
        self._failures = key_file.count_failure(self._path) if self._path else self._failures + 1
        if self._failures >= MOST_FAILURES:
            self._failures, self.held = 0, None
            if self._path is not None:
                key_file.remove(self._path)

    def _is_replaced(self) -> bool:
        return self._path is not None and key_file.stamp(self._path) != self._stamp

    def _opened(self, found: ClientKeys) -> Pair:
        try:
            secret = SecretKey(self._plan.ring, found.secret)
        except MalformedError as error:
            raise UsageError(
                f"{self._path} must hold keys of the model, got: {error} Remove it: new keys "
                "are made then."
            ) from error
        return secret, KeySet.of(self._plan, found.evaluation)

    def _made(self) -> Pair:
        secret = SecretKey(self._plan.ring)
        stream = keys.generate(self._plan, secret)
        if self._path is not None:
            key_file.write(self._path, ClientKeys(self._plan.digest, secret.dump(), stream))
        return secret, KeySet.of(self._plan, stream)
