"""Answers how many threads the session has, as ONNX Runtime knows it, and in which worker."""

import os

import orjson

from marship.contract import Arrays
from marship.serving.handler import OnnxHandler, Reply


class Share(OnnxHandler):
    """Tells what it runs on, and whether the output was right."""

    def encode(self, outputs: Arrays, state) -> Reply:
        """The answer to [[1, 2, 3]] is [[16, 22]]."""
        del state
        options = self.session._session.get_session_options()
        told = {
            "pid": os.getpid(),
            "threads": options.intra_op_num_threads,
            "right": outputs["output"].tolist() == [[16.0, 22.0]],
        }
        return Reply(orjson.dumps(told))
