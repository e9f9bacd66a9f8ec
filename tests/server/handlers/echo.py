"""Answers what it was sent, with the process that answered; fails where the body asks for it."""

import json
import os


class Echo:
    """Knows the bodies `{"fail": text}` and `{"refuse": text}`."""

    def initialize(self, context):
        """Remember the version that answers."""
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        """One answer for each request."""
        return [self.answer(row["body"], context, index) for index, row in enumerate(data)]

    def answer(self, body, context, index):
        """JSON for JSON, octets for octets."""
        headers = context.get_all_request_header(index)  # their names keep the client's case
        kind = {name.lower(): value for name, value in headers.items()}["content-type"]
        if kind == "application/octet-stream":
            context.set_response_content_type(index, "application/octet-stream")
            return bytes(body)
        context.set_response_content_type(index, "application/json")
        got = json.loads(body) if isinstance(body, bytes | bytearray) else body
        if isinstance(got, dict) and "fail" in got:
            raise RuntimeError(got["fail"])
        if isinstance(got, dict) and "refuse" in got:
            context.set_response_status(400, "Bad Request", index)
            return json.dumps({"code": "invalid_input", "message": got["refuse"]}).encode()
        return json.dumps({"got": got, "pid": os.getpid(), "version": self.version}).encode()
