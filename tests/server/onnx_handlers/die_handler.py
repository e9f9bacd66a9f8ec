"""Ends its process for a request whose first value is 13."""

import os

from marship.serving.handler import OnnxHandler


class Die(OnnxHandler):
    """Tensors in and out, as a model whose native code crashes on one of them."""

    def decode(self, request):
        """Look at the first value before the model runs."""
        inputs, state = super().decode(request)
        if inputs["input"][0, 0] == 13:
            os._exit(1)
        return inputs, state
