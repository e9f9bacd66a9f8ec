"""What workers are told to write down of requests: a log, and traces."""

import json
import re
from pathlib import Path

from marship.errors import UsageError

LOG_FILE = "requests.jsonl"
LOG_ENV, TRACES_ENV = "MARSHIP_REQUEST_LOG", "MARSHIP_TRACES"
_KINDS = ("off", "access", "bodies")
_URL = re.compile(r"https?://[^\s/]+(?:/\S*)?")


def variables(
    logs: Path, request_log: str, traces_url: str | None, trace_share: float
) -> dict[str, str]:
    """The environment of workers.

    Args:
        logs: The folder of logs.
        request_log: off, access or bodies.
        traces_url: Where spans are sent; None sends none.
        trace_share: Of requests whose clients send no trace id.

    Raises:
        UsageError: One is none of these.
    """
    if request_log not in _KINDS:
        raise UsageError(f"--request-log must be {', '.join(_KINDS)}, got {request_log!r}.")
    found = {}
    if request_log != "off":
        asked = {"file": str(logs.absolute() / LOG_FILE), "bodies": request_log == "bodies"}
        found[LOG_ENV] = json.dumps(asked)
    if traces_url is not None:
        if not _URL.fullmatch(traces_url):
            raise UsageError(
                "--traces-url must be like http://127.0.0.1:4318/v1/traces, got "
                f"{traces_url!r}. Name the collector's address for OTLP over HTTP."
            )
        found[TRACES_ENV] = json.dumps({"url": traces_url, "share": trace_share})
    elif trace_share:
        raise UsageError(
            "--trace-share must come with --traces-url, got it alone. Name a collector."
        )
    return found
