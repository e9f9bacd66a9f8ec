"""The environment variables of Java and its workers, which run a model's code."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from marship.errors import UsageError

_KEPT_OUT = {
    "PYTHONPATH",  # a worker runs the archive's own copy of marship, and its own handler
    "PYTHONHOME",
    "TS_CONFIG_FILE",  # overrides the resolved settings
    "TS_MODEL_SERVER_HOME",
    "TS_OPEN_INFERENCE_PROTOCOL",  # enables a protocol that the settings must not
    "MARSHIP_INFERENCE_TOKEN",  # a worker runs a model's code: it needs no tokens
    "MARSHIP_MANAGEMENT_TOKEN",
    "MARSHIP_KEY_PASSPHRASE",
}
PARTY_KEY = "MARSHIP_PARTY_KEY"
"""The path of the key of party 0 of three, for its worker: see docs/private-parties.md."""
_NEEDED = {
    PARTY_KEY,
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"),
}
_NEEDED_PREFIX = "LC_"
TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime's: see `marship.__init__`."""


def build(
    temporary: Path, worker_variables: Mapping[str, str | None], named: Sequence[str] | None
) -> dict[str, str]:
    """The environment variables of a server.

    Args:
        temporary: Its temporary folder.
        worker_variables: Set for the workers by marship; those that are None are left out.
        named: Pass on only these and required ones; None passes on all harmless ones.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _KEPT_OUT and (named is None or _is_needed(name) or name in named)
    }
    if key := inherited.get(PARTY_KEY):
        inherited[PARTY_KEY] = str(Path(key).absolute())  # a worker runs in another folder
    inherited |= {name: value for name, value in worker_variables.items() if value is not None}
    return inherited | {
        "TMPDIR": str(temporary),
        "LOG_LOCATION": "logs",
        "METRICS_LOCATION": "logs",
        "PYTHONFAULTHANDLER": "1",  # a worker that crashes in native code prints where
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # a log line with any name in it is written
        "PYTHONUNBUFFERED": "1",  # what a worker printed before it died is in the log
        TELEMETRY: os.environ.get(TELEMETRY, "1"),  # for handlers that import it before marship
    }


def check_named(names: Sequence[str]) -> None:
    """Check that variables can be passed on.

    Raises:
        UsageError: One is never passed on, or is not set.
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
