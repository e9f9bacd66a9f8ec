"""Takes as many seconds for a request as its first value says."""

import time

from marship.serving.handler import OnnxHandler


class Doze(OnnxHandler):
    """Tensors in and out, late."""

    def decode(self, request):
        """Sleep before the model runs."""
        inputs, state = super().decode(request)
        time.sleep(float(inputs["input"][0, 0]))  # as long as the request says
        return inputs, state
