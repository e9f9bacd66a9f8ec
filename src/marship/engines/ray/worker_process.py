"""Loads an extracted archive and serves it directly, as a worker of TorchServe does.

Run as a script by a replica. It uses the archive's own copy of marship: nothing of it may be
imported before the archive is first on the path.

An archive asks whether TorchServe's worker script runs it, and then serves at the acceptor that the
environment names. So this script looks like one, and stands in for the few names of TorchServe that
an archive looks at, which need not be installed here, and would bring PyTorch with them.

It reads its task as a line of JSON from standard input, writes what happens as lines to the
descriptor that the task names, and ends when standard input does: with its replica.
"""

import importlib
import json
import os
import shutil
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

REPORT_S = 2.0


class TorchModelServiceWorker:
    """The name by which an archive knows a worker's script."""


class StandIn:
    """What a handler reads of TorchServe's context."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.model_name = task["name"]
        self.manifest = task["manifest"]
        self.model_yaml_config = task["config"]
        self.system_properties = {
            "model_dir": task["folder"],
            "gpu_id": task["device"],
            "batch_size": task["batch_size"],
            "server_name": "marship on Ray",
        }


def stand_in() -> None:
    """Put the modules of TorchServe in place whose version an archive looks at."""
    found = PathFinder.find_spec("ts")
    where = list(found.submodule_search_locations or ()) if found else []
    names = ("ts", "ts.protocol", "ts.service", "ts.version", "ts.protocol.otf_message_handler")
    for name in names:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(Path(*(where[:1] or ["/nonexistent"]), "ray"))
        if name in ("ts", "ts.protocol"):
            inner = name.removeprefix("ts").strip(".")
            module.__path__ = [str(Path(one, inner)) for one in where]
        owner, _, own = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], own, module)
    sys.modules["ts.version"].__version__ = "none, but Ray"  # type: ignore[attr-defined]
    sys.modules["ts.service"].Service = type("Service", (), {"predict": None})  # type: ignore[attr-defined]


def load(task: dict[str, Any]) -> Any:  # noqa: ANN401  the archive's own class
    """The archive's handler, which serves from now on.

    Raises:
        Exception: It does not load.
    """
    from marship.errors import LoadError
    from marship.serving.handler import OnnxHandler

    name = task["handler"].partition(":")[0]
    module = importlib.import_module(Path(name).stem)
    defined = [value for value in vars(module).values() if isinstance(value, type)]
    kinds = [kind for kind in defined if kind.__module__ == module.__name__]
    if len(kinds) != 1 or not issubclass(kinds[0], OnnxHandler):
        raise LoadError(
            f"{name} must define one class, an OnnxHandler of marship, to run on Ray, got "
            f"{[kind.__name__ for kind in kinds]}. Serve it with TorchServe."
        )
    if importlib.util.find_spec("marship.serving.hosts.direct") is None:
        raise LoadError(
            f"the copy of marship in {task['archive']} must serve HTTP itself, got an older one. "
            "Package the model again with: marship package"
        )
    handler = kinds[0]()
    handler.initialize(StandIn(task))  # type: ignore[arg-type]
    return handler


def report(handler: Any, task: dict[str, Any], sink: Any) -> None:  # noqa: ANN401
    """Write what the handler counted, again and again."""
    from marship.serving.hosts.torchserve import report as reports

    version = str(task["manifest"]["model"].get("modelVersion", ""))
    while True:
        time.sleep(REPORT_S)
        reports.write(handler.metrics, task["name"], version, sink)


def main(task: dict[str, Any], sink: Any) -> None:  # noqa: ANN401  a text file
    """Load, tell, and count until the process ends."""
    from marship.errors import MarshipError

    try:
        handler = load(task)
    except MarshipError as error:
        told = {"code": error.code, "message": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        found = f"{type(error).__name__}: {error}".rstrip(".: ")
        told = {"code": "load", "message": f"{task['handler']} must load, got {found}."}
    else:
        facts = {"ready": True, "streams": bool(type(handler).streams)}
        print(json.dumps(facts), file=sink, flush=True)
        report(handler, task, sink)
        return
    print(json.dumps(told), file=sink, flush=True)
    os._exit(1)


def follow_replica(scratch: str) -> None:
    """End with the replica, whose end of standard input closes then, however it ends.

    Args:
        scratch: The replica's folder, which one that was killed has left.
    """
    sys.stdin.buffer.read()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".") != Path(__file__).parent]
    sys.path.insert(0, given["folder"])
    stand_in()
    threading.Thread(target=follow_replica, args=(given["scratch"],), daemon=True).start()
    main(given, os.fdopen(given["sink"], "w"))
