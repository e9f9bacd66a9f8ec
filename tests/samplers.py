"""Keys, writers and readers of samples of requests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from marship.serving.hosts.direct import samples
from marship.serving.hosts.direct.heads import Head
from marship.serving.hosts.direct.samples import RequestSample, SampleWriter

OPERATOR = bytes(range(32))
KEY = samples.key_of(OPERATOR)


def write_key(path: Path, key: bytes = OPERATOR) -> str:
    """A key's file; returns its source."""
    path.touch(mode=0o600)
    path.write_text(key.hex())
    return f"file:{path}"


def exchanged(body: bytes, **facts: Any) -> Any:
    """A request that is done, as far as a writer looks at it."""
    head = Head("POST", b"/predictions/m", {b"content-type": b"application/json"})
    return SimpleNamespace(head=head, body=body, is_abandoned=False, **facts)


def writer(root: Path, model: str = "m", version: str = "1.0", share: float = 1.0) -> SampleWriter:
    """A writer whose folder is made."""
    root.mkdir(exist_ok=True)
    return SampleWriter(root, share, KEY, model, version)


def sealed_files(root: Path) -> list[Path]:
    """All samples below a folder."""
    return sorted(root.rglob("*.sealed"))


def read(path: Path) -> RequestSample:
    """A sample of the version in whose folder it lies."""
    return samples.opened(path, KEY, path.parent.parent.name, path.parent.name)
