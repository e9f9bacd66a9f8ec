"""Archives that claim something else than was found at packing."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml


def claiming(
    archive: Path,
    change: Callable[[dict[str, Any]], object],
    section: Mapping[str, Any] | None = None,
) -> Path:
    """The archive beside it with another contract, and settings under `marship:`."""
    target = archive.with_name(f"claiming-{archive.name}")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as sink:
        for name in source.namelist():
            data = source.read(name)
            if name == "contract.json":
                change(claimed := json.loads(data))
                data = json.dumps(claimed).encode()
            if name == "model-config.yaml" and section:
                config = yaml.safe_load(data)
                config["marship"] |= section
                data = yaml.safe_dump(config).encode()
            sink.writestr(name, data)
    return target
