"""Archives and keys for tests of signatures."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from marship.trust import keys
from marship.trust.contents import MANIFEST_FILE
from marship.trust.keys import PrivateKey
from marship.trust.policy import Trust

FILES = {"handler.py": b"class Handler: pass\n", "model.onnx": bytes(range(256)) * 40}


def manifest(name: str = "lin", version: str = "1.0") -> bytes:
    """A manifest as torch-model-archiver writes it."""
    model = {"modelName": name, "modelVersion": version, "handler": "handler.py"}
    return json.dumps({"runtime": "python", "model": model}).encode()


def write(
    path: Path,
    files: Mapping[str, bytes] = FILES,
    *,
    model: str = "lin",
    version: str = "1.0",
    deflate: bool = False,
) -> Path:
    """Write an archive of these files and a manifest."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
        zipped.writestr(MANIFEST_FILE, manifest(model, version))
    return path


def make_key(folder: Path, name: str = "release", **settings: bool) -> PrivateKey:
    """A new key, read back."""
    return keys.read_private(keys.generate(name, folder, **settings).private)


def trusting(folder: Path, *signers: PrivateKey) -> Trust:
    """A trust folder with the public keys of these."""
    folder.mkdir(mode=0o700)
    for key in signers:
        public = key.path.with_suffix(keys.PUBLIC_SUFFIX)
        (folder / public.name).write_bytes(public.read_bytes())
        (folder / public.name).chmod(0o644)
    return Trust.load(folder)
