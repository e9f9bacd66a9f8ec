"""The script that a worker process runs: it waits for its task, and hands over to the archive.

Nothing of marship is imported before the archive's own copy can be found. What that needs anyway
is imported while the host still verifies the archive.
"""

import importlib
import json
import os
import sys

if __name__ == "__main__":
    # what a handler prints goes to the log
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for module in ("numpy", "onnxruntime", "orjson", "httptools", "uvloop"):
        importlib.import_module(module)
    line = sys.stdin.buffer.readline()
    if not line:  # the host has ended
        os._exit(1)
    task = json.loads(line)
    sys.path.insert(0, task["folder"])
    try:
        from marship.serving.hosts.direct import entry
        from marship.serving.hosts.direct.task import WorkerTask
    except ImportError as error:
        found = f"the copy of marship in the archive must serve without an engine, got: {error}. "
        fact = {"code": "load", "message": f"{found}Package {task['name']} again."}
        reports.write(json.dumps(fact).encode() + b"\n")
        reports.flush()
        os._exit(1)
    entry.main(WorkerTask(**task), reports)
    sys.stderr.flush()
    os._exit(0)  # even if a handler's threads are running
