"""What an application was deployed with, as the keeper holds it: JSON, as pickles can hold code."""

import base64
import json
from dataclasses import asdict

from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.hosted import HostedVersion
from marship.engines.ray.plan import RunPlan


def to_json(version: HostedVersion, plan: RunPlan) -> str:
    """Both as a text."""
    described = asdict(version)
    source = described["source"]
    source["keys"] = {name: _text(key) for name, key in source["keys"].items()}
    source["signature"] = source["signature"] and _text(source["signature"])
    return json.dumps({"version": described, "plan": asdict(plan)})


def from_json(text: str) -> tuple[HostedVersion, RunPlan]:
    """Both again."""
    held = json.loads(text)
    source = held["version"].pop("source")
    source["keys"] = {name: base64.b64decode(key) for name, key in source["keys"].items()}
    source["signature"] = source["signature"] and base64.b64decode(source["signature"])
    version = HostedVersion(**held["version"], source=ArchiveSource(**source))
    return version, RunPlan(**held["plan"])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
