"""Wheels of our own making in place of those on PyPI: no test asks the network for one."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import pytest


def put(
    module: ModuleType, name: str, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put a wheel with these files where the one that a module names is looked for."""
    wheel = getattr(module, name)
    path = module.wheels.cache_dir() / "wheels" / wheel.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, name, replace(wheel, sha256=digest))
