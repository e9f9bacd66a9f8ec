"""Answers which transport the worker uses."""

import sys

import orjson

from marship.contract import Arrays
from marship.serving.handler import OnnxHandler, Reply


class Tell(OnnxHandler):
    """Tells the module whose function reads the socket, and the request's headers."""

    def decode(self, request):
        """Keep the headers for the answer."""
        inputs, _ = super().decode(request)
        return inputs, request.headers

    def encode(self, outputs: Arrays, state) -> Reply:
        """The reader's module and the headers."""
        del outputs
        reader = sys.modules["__main__"].retrieve_msg.__module__
        return Reply(orjson.dumps({"reader": reader, "agent": state["user-agent"]}))
