"""Dies while loading, in native code."""

import ctypes


class Crashes:
    """Never loads."""

    def initialize(self, context):
        """Read address 0."""
        ctypes.string_at(0)

    def handle(self, data, context):
        """Never called."""
