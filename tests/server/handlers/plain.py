"""Returns what it was sent as Python values: TorchServe writes them as JSON."""

import json


class Plain:
    """The body is any JSON."""

    def initialize(self, context):
        """Nothing to load."""

    def handle(self, data, context):
        """The parsed bodies."""
        return [json.loads(bytes(row["body"])) for row in data]
