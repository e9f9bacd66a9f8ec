"""Scripts and servers that see file systems of their own: small, read-only, or exchanged."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from marship.engines.home import Home

UNSHARE = ["/usr/bin/unshare", "--mount", "--map-root-user"]
SERVE = '"$2" -m marship serve --home "$0" --model-store "$1" --free-ports --detach >&2'


def run_apart(
    script: str, *words: object, cwd: Path | None = None, also: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what it likes; $0 and on are `words`.

    Mounting needs root or user namespaces; where the kernel gives neither, the test says so and
    is skipped. `also` are flags of unshare for further namespaces, such as --net.
    """
    unshare = [*UNSHARE, *also]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets only root mount a file system, or have a network apart")
    return subprocess.run(
        [*unshare, "sh", "-c", script, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def served(mounts: str, home: Path, store: Path) -> Iterator[Home]:
    """A server that sees what a script mounted; in it $0 is the home and $1 the model store.

    Yields:
        The home as seen from outside, which clients can be given.
    """
    home.mkdir()
    done = run_apart(f'{mounts} && {SERVE} && cat "$0/server.json"', home, store, sys.executable)
    assert done.returncode == 0, done.stderr
    seen = Home(Path(f"/proc/{json.loads(done.stdout)['pid']}/root{home}"))
    record = seen.require_running()
    try:
        yield seen
    finally:
        record.group.end(grace_s=5)
