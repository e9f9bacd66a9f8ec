"""What workers are told to write down of requests: a log, traces, and samples."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from marship import storage
from marship.errors import StorageError, UsageError
from marship.serving.model import keysource

LOG_FILE = "requests.jsonl"
LOG_ENV, TRACES_ENV = "MARSHIP_REQUEST_LOG", "MARSHIP_TRACES"
SAMPLES_ENV = "MARSHIP_SAMPLES"
_KINDS = ("off", "access", "bodies")
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
"""Variables of OpenTelemetry (Protocol Exporter, "Specifying headers via environment variables");
the first one that is set counts."""
_HEADER = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_URL = re.compile(r"https?://[^\s/]+(?:/\S*)?")


class RequestNotes(Protocol):
    """Settings of what is written down."""

    @property
    def request_log(self) -> str:
        """off, access or bodies."""

    @property
    def traces_url(self) -> str | None:
        """Where spans are sent; None sends none."""

    @property
    def trace_share(self) -> float:
        """Of requests whose clients send no trace id."""

    @property
    def samples(self) -> Path | None:
        """The folder for samples; None takes none."""

    @property
    def sample_share(self) -> float:
        """Of requests that are answered."""

    @property
    def seal_key(self) -> str | None:
        """The source of the key; None is the environment's."""


def variables(logs: Path, notes: RequestNotes) -> dict[str, str]:
    """The environment of workers; the folder of samples is made.

    Args:
        logs: The folder of logs.
        notes: What they write down.

    Raises:
        UsageError: A setting is none of what can be, or lacks another one.
        StorageError: The folder of samples cannot be made, or written to.
    """
    return {**_logged(logs, notes.request_log), **_traced(notes), **_sampled(notes)}


def _logged(logs: Path, request_log: str) -> dict[str, str]:
    if request_log not in _KINDS:
        raise UsageError(f"--request-log must be {', '.join(_KINDS)}, got {request_log!r}.")
    if request_log == "off":
        return {}
    asked = {"file": str(logs.absolute() / LOG_FILE), "bodies": request_log == "bodies"}
    return {LOG_ENV: json.dumps(asked)}


def _traced(notes: RequestNotes) -> dict[str, str]:
    url = notes.traces_url
    if url is None:
        if notes.trace_share:
            raise UsageError(
                "--trace-share must come with --traces-url, got it alone. Name a collector."
            )
        return {}
    if not _URL.fullmatch(url):
        raise UsageError(
            f"--traces-url must be like http://127.0.0.1:4318/v1/traces, got {url!r}. Name the "
            "collector's address for OTLP over HTTP."
        )
    asked = {"url": url, "share": notes.trace_share, "headers": _headers(os.environ)}
    return {TRACES_ENV: json.dumps(asked)}


def _sampled(notes: RequestNotes) -> dict[str, str]:
    folder = notes.samples
    if (folder is None) != (notes.sample_share == 0):
        raise UsageError(
            "--samples and --sample-share must come together, got one of them. Name a folder, and "
            "a share above 0."
        )
    if folder is None:
        return {}
    if keysource.chosen(notes.seal_key) is None:
        raise UsageError(
            "--samples must come with --seal-key, got none: samples are encrypted. Make a key "
            f"with: openssl rand -hex {keysource.KEY_BYTES}"
        )
    with storage.explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} must be writable, got a folder that is not. Name another.")
    return {
        SAMPLES_ENV: json.dumps({"folder": str(folder.absolute()), "share": notes.sample_share})
    }


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
