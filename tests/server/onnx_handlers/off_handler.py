"""Tensors in and out, and every answer is off by one: seen only through the endpoint."""

from marship.serving.handler import OnnxHandler
from marship.serving.model.batch import Batcher


class Off(OnnxHandler):
    """Loads as it should."""

    def prepare(self):
        """Put the fault in after the golden cases were replayed."""
        run = self.session.run

        def off(inputs):
            return {name: array + 1 for name, array in run(inputs).items()}

        self.session.run = off
        self._batcher = Batcher(self.contract, off, False, True)
