"""Records golden requests: what the handler of an archive that is being built responds to files.

The archive is loaded twice, in processes of their own, and both must respond alike: what a handler
does not determine, a random id or a time, cannot be held against it later.
"""

import base64
import os
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from marship import console
from marship.errors import PackageError, UsageError
from marship.packaging import loading
from marship.serving.formats import golden
from marship.serving.formats.golden import GoldenRequest
from marship.serving.formats.media import media_type
from marship.serving.model import keysource

MOST_REQUESTS = 100
_SHOWN_BYTES = 300


def check_files(paths: Sequence[Path]) -> None:
    """Refuse files that cannot be recorded, before anything is built.

    Raises:
        UsageError: One is missing, two have one name, or there are too many.
    """
    for path in paths:
        if not path.is_file():
            raise UsageError(f"a golden request must be a file with a request's body, got {path}.")
    names = [path.name for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"golden requests must have names of their own, got two {twice}.")
    size_bytes = sum(path.stat().st_size for path in paths)
    if len(paths) > MOST_REQUESTS or size_bytes > golden.MOST_BYTES:
        raise UsageError(
            f"golden requests must be at most {MOST_REQUESTS} files of {golden.MOST_BYTES:,} bytes "
            f"in all, got {len(paths)} of {size_bytes:,}. Each worker replays them when it loads."
        )


def record(
    folder: Path,
    task: dict[str, Any],
    *,
    paths: Sequence[Path],
    seal: str | None,
    limit_s: float,
) -> list[GoldenRequest]:
    """The requests in files, with the responses of the archive's own handler.

    Args:
        folder: The extracted archive.
        task: See `loading_process.main`.
        paths: The files.
        seal: The source of the key of sealed files.
        limit_s: How long loading and all responses may take.

    Raises:
        LoadError: The archive does not load.
        PackageError: A response is an error, or is another one the next time.
    """
    sent = [{"path": str(path.absolute()), "content_type": media_type(path)} for path in paths]
    task = {**task, "record": sent}
    seen = dict(os.environ)
    if seal is not None:
        seen[keysource.SOURCE_VARIABLE] = keysource.settled(seal)
    first, second = (_responses(folder, task, seen, limit_s) for _ in range(2))
    requests = [
        _checked(path, row, content_type=media_type(path))
        for path, row in zip(paths, first, strict=True)
    ]
    for one, row in zip(requests, second, strict=True):
        again = golden.value_of(base64.b64decode(row["body"]), row["content_type"])
        if found := one.change(again):
            raise PackageError(
                f"golden request {one.name} must get the same response each time, got {found} "
                "the second time. Leave what changes, such as ids and times, out of the response, "
                "or leave the request out."
            )
    return requests


def _responses(
    folder: Path, task: dict[str, Any], seen: dict[str, str], limit_s: float
) -> list[dict[str, Any]]:
    found = loading.run(folder, task, seen, limit_s)
    if "code" in found:
        raise PackageError(
            f"{task['name']} must load so that golden requests can be recorded, got: "
            f"{found['message']}"
        )
    responses: list[dict[str, Any]] = found["recorded"]
    return responses


def _checked(path: Path, row: dict[str, Any], *, content_type: str) -> GoldenRequest:
    """A recorded request.

    Raises:
        PackageError: The response is an error.
    """
    response = base64.b64decode(row["body"])
    if "log" in row:  # the worker's fault: its response names a log that nobody has
        console.err.print(row["log"], markup=False, highlight=False, soft_wrap=True)
        raise PackageError(
            f"golden request {path.name} must get a response, got status {row['status']}. See the "
            "handler's log above."
        )
    if row["status"] != HTTPStatus.OK:
        said = response[:_SHOWN_BYTES].decode(errors="replace")
        raise PackageError(
            f"golden request {path.name} must get a response, got status {row['status']}: {said}"
        )
    return GoldenRequest(path.name, content_type, path.read_bytes(), row["content_type"], response)
