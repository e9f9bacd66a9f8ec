"""TorchServe's management API in memory, as far as marship's flows use it.

`tests/server/test_management.py` holds it against the real server. What it adds: it knows who
registered each version.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from marship.exchange.calls import Call, HttpResponse

GONE_PIDS = itertools.count(5_000_000)  # beyond what a Linux process can have


@dataclass
class Registered:
    """A version on the server; `pid` changes as often as a worker that cannot load dies."""

    url: str
    by: str
    workers: int
    batch_size: int
    max_batch_delay_ms: int
    is_good: bool
    pid: int = 0
    max_workers: int | None = None

    def described(self, name: str, version: str) -> dict[str, object]:
        """As TorchServe tells it; a worker is ready, or another one each time."""
        if not self.is_good or not self.pid:
            self.pid = next(GONE_PIDS)
        status = "READY" if self.is_good else "UNLOADING"
        workers = [{"id": str(n), "pid": self.pid, "status": status} for n in range(self.workers)]
        return {
            "modelName": name,
            "modelVersion": version,
            "modelUrl": self.url,
            "minWorkers": self.workers,
            "maxWorkers": self.workers if self.max_workers is None else self.max_workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay_ms,
            "responseTimeout": 60,
            "loadedAtStartup": False,
            "workers": workers,
            "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
        }


@dataclass
class Versions:
    """A model: its versions, and the one that answers."""

    default: str
    versions: dict[str, Registered]


@dataclass(frozen=True)
class Stored:
    """An archive of the store: what it says, and whether its workers can load.

    `workers`, the fewest and the most, win over the number that a registration asks for.
    """

    name: str
    version: str
    is_good: bool = True
    workers: tuple[int, int] | None = None


@dataclass
class Management:
    """The server: its model store, and what is registered."""

    store: dict[str, Stored]
    models: dict[str, Versions] = field(default_factory=dict)

    def answer(self, call: Call, by: str = "") -> HttpResponse:
        """The response to a call of one client."""
        parts = [unquote(part) for part in call.path.strip("/").split("/")]
        assert parts[0] == "models", call
        if call.method == "POST":
            return self._register(call, by)
        if len(parts) == 1:
            return _json(200, {"models": [{"modelName": name} for name in sorted(self.models)]})
        name, version = parts[1], parts[2] if len(parts) > 2 else None
        model = self.models.get(name)
        if model is None:
            return _problem(404, "ModelNotFoundException", f"Model not found: {name}")
        if version == "all" and call.method == "GET":
            return _json(200, [r.described(name, v) for v, r in sorted(model.versions.items())])
        version = version or model.default
        if version not in model.versions:
            return _problem(404, "ModelVersionNotFoundException", f"no version {version}")
        return self._of_version(call, name, version)

    def _of_version(self, call: Call, name: str, version: str) -> HttpResponse:
        model = self.models[name]
        if call.method == "GET":
            return _json(200, [model.versions[version].described(name, version)])
        if call.method == "DELETE":
            return self._unregister(name, model, version)
        if call.path.endswith("/set-default"):
            model.default = version
            return _json(200, {"status": "Default version successfully updated"})
        registered = model.versions[version]
        registered.workers = int(call.params["min_worker"])
        registered.max_workers = int(call.params["max_worker"])
        return _json(202, {"status": "Processing worker updates..."})

    def _register(self, call: Call, by: str) -> HttpResponse:
        url = call.params["url"]
        stored = self.store.get(Path(url).name)
        if stored is None:
            return _problem(404, "ModelNotFoundException", f"Model not found at: {url}")
        name = call.params.get("model_name", stored.name)
        model = self.models.get(name)
        if model and stored.version in model.versions:
            return _problem(409, "ConflictStatusException", "is already registered")
        model = self.models.setdefault(name, Versions(stored.version, {}))
        asked = int(call.params.get("initial_workers", 1))
        fewest, most = stored.workers or (asked, asked)
        model.versions[stored.version] = Registered(
            url=url,
            by=by,
            workers=fewest,
            batch_size=int(call.params.get("batch_size", 1)),
            max_batch_delay_ms=int(call.params.get("max_batch_delay", 100)),
            is_good=stored.is_good,
            max_workers=most,
        )
        status = 202 if model.versions[stored.version].workers else 200
        return _json(status, {"status": "Processing worker updates..."})

    def _unregister(self, name: str, model: Versions, version: str) -> HttpResponse:
        if version == model.default and len(model.versions) > 1:
            return _problem(403, "InvalidModelVersionException", "Cannot remove default version")
        del model.versions[version]
        if not model.versions:
            del self.models[name]
        return _json(200, {"status": "unregistered"})


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps(value).encode())


def _problem(status: int, kind: str, message: str) -> HttpResponse:
    return _json(status, {"code": status, "type": kind, "message": message})
