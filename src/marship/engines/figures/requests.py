"""What workers are told to write down of requests: a log, and traces."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from marship.errors import UsageError

LOG_FILE = "requests.jsonl"
LOG_ENV, TRACES_ENV = "MARSHIP_REQUEST_LOG", "MARSHIP_TRACES"
_KINDS = ("off", "access", "bodies")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
"""Variables of OpenTelemetry (Protocol Exporter, "Specifying headers via environment variables");
the first one that is set counts."""
_HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
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
        headers = _headers(os.environ)
        found[TRACES_ENV] = json.dumps(
            {"url": traces_url, "share": trace_share, "headers": headers}
        )
    elif trace_share:
        raise UsageError(
            "--trace-share must come with --traces-url, got it alone. Name a collector."
        )
    return found


def _headers(variables: Mapping[str, str]) -> dict[str, str]:
    """Headers for the collector, such as what it tells its users apart by.

    Raises:
        UsageError: A variable is not of the form; what it says is not repeated: it is secret.
    """
    name = next((one for one in _HEADERS if variables.get(one, "").strip()), None)
    if name is None:
        return {}
    found = {}
    for part in filter(None, map(str.strip, variables[name].split(","))):
        key, is_pair, value = part.partition("=")
        key, value = key.strip(), unquote(value.strip())
        if not (is_pair and _HEADER.fullmatch(key) and value.isascii() and value.isprintable()):
            raise UsageError(
                f"{name} must be like api-key=VALUE,other=VALUE, got another form. Write commas "
                "and spaces in a value as %2C and %20."
            )
        found[key] = value
    return found
