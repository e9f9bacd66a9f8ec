"""Takes its time to load."""

import time


class Slow:
    """Ready after a minute."""

    def initialize(self, context):
        """Sleep."""
        time.sleep(60)  # longer than any test waits

    def handle(self, data, context):
        """Answer anything."""
        return ["fine"] * len(data)
