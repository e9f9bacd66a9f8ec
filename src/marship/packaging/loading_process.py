"""The process in which `loading` loads an archive: a host without a server.

Run as a script with the folder of the extracted archive. It reads its task as JSON from standard
input, and writes what each step found as a line of JSON to standard output. Like a worker it
imports the archive's own copy of marship, so nothing of it may be imported at module level.
"""

import base64
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_RUNS, MOST_S = 50, 2.0
"""Each timing is the median of this many calls, or of those that fit into this many seconds."""

SHOWN_BYTES = 1 << 20
FAILED = 500
"""HTTP statuses from here on are the worker's fault."""


def main(folder: Path, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Load the archive, and handle the request if there is one; yields what each step found.

    Args:
        folder: The extracted archive.
        task: `handler`, `name`, `version`, `config`, `limit_bytes`; perhaps `body` and
            `content_type`, to time the response to a file; perhaps `record`, a list of files with
            `path` and `content_type`, to get all of what is responded; perhaps `describes`, to
            get what a server's OpenAPI document says of the model.
    """
    from marship.errors import MarshipError

    before = _memory_bytes("VmRSS")
    started = time.perf_counter()
    try:
        handler = _handler(folder, task["handler"])
        _load(handler, folder, task)
    except MarshipError as error:
        yield {"code": error.code, "message": str(error)}
        return
    except ImportError as error:
        yield {"code": "load", "message": _not_imported(task["handler"], error)}
        return
    except Exception as error:
        found = f"{type(error).__name__}: {error}".rstrip(".: ")
        yield {"code": "load", "message": f"{task['handler']} must load, got {found}."}
        return
    yield {
        "load_s": time.perf_counter() - started,
        "threads": handler.session.settings.threads,
        "before_bytes": before,
        "loaded_bytes": _memory_bytes("VmRSS"),
        "golden_cases": len(handler.golden_s),
        "golden_ms": statistics.median(handler.golden_s or [0.0]) * 1e3,
        "golden_requests": getattr(handler, "golden_requests", 0),  # an older archive has none
    }
    response: dict[str, Any] = {"response": _response(handler, task)} if "body" in task else {}
    if "record" in task:
        response["recorded"] = [_recorded(handler, **file) for file in task["record"]]
    if task.get("describes") and hasattr(handler, "description"):
        response["description"] = json.loads(handler.description())
    yield response | {"peak_bytes": _memory_bytes("VmHWM")}


def _handler(folder: Path, name: str) -> Any:  # noqa: ANN401  the archive's own class
    """An instance of the only class that the handler's file defines, as in TorchServe."""
    from marship.errors import LoadError

    if not (folder / Path(name).with_suffix(".py").name).is_file():
        raise LoadError(
            f"{name} must be in the archive to load without a server, got a handler that the "
            "server has. Register the archive: only a server can load it."
        )
    module = importlib.import_module(Path(name).stem)
    defined = [value for value in vars(module).values() if isinstance(value, type)]
    kinds = [kind for kind in defined if kind.__module__ == module.__name__]
    if len(kinds) != 1:
        raise ImportError(f"{len(kinds)} classes")
    return kinds[0]()


def _load(handler: Any, folder: Path, task: dict[str, Any]) -> None:  # noqa: ANN401
    from marship.errors import LoadError
    from marship.serving import handler as base

    if not isinstance(handler, base.OnnxHandler):
        raise LoadError(
            f"{task['handler']} must be a handler of marship to load without a server, got a class "
            "that is no OnnxHandler. Register the archive: only a server can load it."
        )
    if not hasattr(base, "Placement"):
        raise LoadError(
            f"the copy of marship in the archive must load models without a server, got an older "
            f"one. Package {task['name']} again with: marship package, or register it as it is: "
            "servers serve it as before."
        )
    if type(handler).initialize is not base.OnnxHandler.initialize:
        raise LoadError(
            f"{task['handler']} must load without a server's context, got one that overrides "
            "initialize. Move what it does to prepare, or register it."
        )
    config = task["config"]
    timeout_s = config.get("responseTimeout")
    placement = base.Placement(
        folder=folder,
        name=task["name"],
        version=task["version"],
        config=config,
        workers=max(1, int(config.get("minWorkers") or 1)),
        timeout_s=None if timeout_s is None else float(timeout_s),
        max_request_bytes=task["limit_bytes"],
        max_response_bytes=task["limit_bytes"],
    )
    handler.load(placement)


def _response(handler: Any, task: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """The response to the request in a file, and its median time in a worker."""
    from marship.errors import MarshipError
    from marship.serving.formats import forms

    body, content_type = Path(task["body"]).read_bytes(), task["content_type"]
    headers = {"content-type": content_type, "content-length": str(len(body))}
    limits = {"most_fields": handler.max_fields, "most_bytes": task["limit_bytes"]}

    def predict() -> list[Any]:
        try:
            request = forms.request_of(body, headers, **limits)
        except MarshipError as error:
            return [handler.refusal(error)]
        return [reply for ready, _ in handler.replies([request]) for reply in ready.values()]

    started = time.perf_counter()
    replies = predict()
    first_ms = (time.perf_counter() - started) * 1e3
    sent = b"".join(reply.body for reply in replies)
    return {
        "status": replies[0].status,
        "content_type": replies[0].content_type,
        "size_bytes": len(sent),
        "body": sent[:SHOWN_BYTES].decode(errors="replace"),
        # a failure is run once: its reason stands once in the log
        "ms": first_ms if replies[0].status >= FAILED else _median_ms(predict),
    }


def _recorded(handler: Any, path: str, content_type: str) -> dict[str, Any]:  # noqa: ANN401
    """The response to the request in a file; its body in Base64."""
    reply = handler.respond(Path(path).read_bytes(), content_type)
    body = base64.b64encode(reply.body).decode()
    return {"status": reply.status, "content_type": reply.content_type, "body": body}


def _median_ms(call: Callable[[], object]) -> float:
    taken_s: list[float] = []
    while len(taken_s) < MOST_RUNS and sum(taken_s) < MOST_S:
        started = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - started)
    return statistics.median(taken_s) * 1e3


def _memory_bytes(name: str) -> int:
    """A value of /proc/self/status, such as VmRSS: proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _not_imported(handler: str, error: ImportError) -> str:
    advice = f" Install it for {sys.executable}." if isinstance(error, ModuleNotFoundError) else ""
    return f"{handler} must be importable and define one class, got: {error}.{advice}"


if __name__ == "__main__":
    # a handler's prints must not mix with the result, and its modules come from the archive
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    extracted, given = sys.argv[1], json.load(sys.stdin)
    sys.path.insert(0, extracted)
    for step in main(Path(extracted), given):
        result.write(json.dumps(step).encode() + b"\n")
        result.flush()
    sys.stderr.flush()
    os._exit(0)  # even if a handler's threads are running
