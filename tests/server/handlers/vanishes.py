"""Ends while loading and says nothing, as if it had been killed."""

import os


class Vanishes:
    """Never loads."""

    def initialize(self, context):
        """End."""
        os._exit(3)

    def handle(self, data, context):
        """Never called."""
