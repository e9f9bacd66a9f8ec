"""What Java and its workers see of the environment: a worker runs a model's code."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from marship.errors import UsageError

_KEPT_OUT = {
    "PYTHONPATH",  # a worker runs the archive's own copy of marship, and its own handler
    "PYTHONHOME",
    "TS_CONFIG_FILE",  # it would override the resolved settings
    "TS_MODEL_SERVER_HOME",
    "TS_OPEN_INFERENCE_PROTOCOL",  # it would switch on what the settings must not
    "MARSHIP_INFERENCE_TOKEN",  # a worker runs a model's code: it needs no tokens
    "MARSHIP_MANAGEMENT_TOKEN",
    "MARSHIP_KEY_PASSPHRASE",
}
_NEEDED = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"),
}
_NEEDED_PREFIX = "LC_"
TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime's: see `marship.__init__`."""


def build(
    temporary: Path, told: Mapping[str, str | None], named: Sequence[str] | None
) -> dict[str, str]:
    """The variables of a server.

    Args:
        temporary: Its temporary folder.
        told: What marship tells the workers; None is left out.
        named: Pass on these and what is needed alone; None passes on what does no harm.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _KEPT_OUT and (named is None or _is_needed(name) or name in named)
    }
    inherited |= {name: value for name, value in told.items() if value is not None}
    return inherited | {
        "TMPDIR": str(temporary),
        "LOG_LOCATION": "logs",
        "METRICS_LOCATION": "logs",
        "PYTHONFAULTHANDLER": "1",  # a worker that crashes in native code says where
        "PYTHONUNBUFFERED": "1",  # what a worker printed before it died is in the log
        TELEMETRY: os.environ.get(TELEMETRY, "1"),  # for handlers that import it before marship
    }


def check_named(names: Sequence[str]) -> None:
    """Make sure that variables can be passed on.

    Raises:
        UsageError: One is never passed on, or is not there.
    """
    for name in names:
        if name in _KEPT_OUT:
            raise UsageError(f"{name} must not reach a worker, got it in --keep-env.")
        if name not in os.environ:
            raise UsageError(
                f"{name} must be set, as --keep-env names it, got no variable of that name."
            )


def _is_needed(name: str) -> bool:
    return name in _NEEDED or name.startswith(_NEEDED_PREFIX)
