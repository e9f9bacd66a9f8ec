"""Answers after as many seconds as it is asked for, without using the processor."""

import json
import time


class Naps:
    """The body is a number."""

    def initialize(self, context):
        """Remember the version that answers."""
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        """One answer for each request."""
        for row in data:
            time.sleep(float(bytes(row["body"])))  # as long as the request says
        return [json.dumps({"version": self.version}).encode() for _ in data]
