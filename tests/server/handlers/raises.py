"""Dies while loading, of an error with a cause."""

from pathlib import Path


class Raises:
    """Never loads."""

    def initialize(self, context):
        """Fail as a handler does that misses a file."""
        try:
            Path("/nowhere/weights").read_bytes()
        except OSError as error:
            raise ValueError("the weights must be there, got none") from error

    def handle(self, data, context):
        """Never called."""
