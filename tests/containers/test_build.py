"""An image is built by buildah, and serves as another user below a read-only root.

`make test-image`; it needs root, buildah, and a base image with Python, MARSHIP_BASE, whose
packages pip finds. MARSHIP_BUILD has further words for `buildah build`.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosted import Hosted, exchange
from marship.deploying import image
from marship.deploying.settings import ImageSettings
from marship.packaging.step import PackageSettings, package
from versions import linear

BASE = os.environ.get("MARSHIP_BASE", "docker.io/library/python:3.12-slim")
WORDS = shlex.split(os.environ.get("MARSHIP_BUILD", ""))
START_S, STARTS = 3.0, 3
"""The best of some starts: others may use the processor, too."""
AS_OTHER = """
mount --bind "$0" "$1" && mount -o remount,ro,bind "$1" &&
mount -t tmpfs -o mode=0777 none "$1/run/marship" && mount -t proc proc "$1/proc" &&
mount --rbind /dev "$1/dev" && mount -t sysfs sys "$1/sys" &&
root=$1 && shift && cd "$root" && exec chroot "$root" setpriv --reuid 1000 --regid 1000 \
  --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all /usr/bin/env -i \
  PATH=/opt/marship/bin:/usr/local/bin:/usr/bin:/bin MARSHIP_HOME=/run/marship/home "$@"
"""


def buildah(*words: object) -> str:
    """What it prints."""
    done = subprocess.run(
        ["/usr/bin/buildah", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of a container of the image."""
    folder = tmp_path_factory.mktemp("image")
    mar = package(linear(folder / "lin.onnx", 1), PackageSettings(model_store=folder))
    container = buildah("from", "--pull-never" if BASE.startswith("localhost/") else "--pull", BASE)
    digest = buildah("inspect", "--format", "{{.FromImageDigest}}", container)
    buildah("rm", container)
    base = f"{BASE.rpartition(':')[0]}@{digest}"
    written = image.write(ImageSettings(base=base, out=folder / "i" / "Containerfile"), [mar])
    file = written.containerfile
    words = ("--isolation", "chroot", "--network", "host", *WORDS, "-f", file, file.parent)
    name = buildah("build", "--quiet", *words).splitlines()[-1]
    container = buildah("from", "--pull-never", name)
    yield Path(buildah("mount", container))
    buildah("rm", container)
    buildah("rmi", "--force", name)


def test_a_container_answers_within_three_seconds(root: Path, tmp_path: Path) -> None:
    """As user 1000 without rights, its root read-only; and it ends in order."""
    (tmp_path / "root").mkdir()
    before = ("unshare", "--mount", "sh", "-c", AS_OTHER, str(root), str(tmp_path / "root"))
    program = ("python", "-P", "-m", "marship", "host", "--home", "/run/marship/home")
    words = ("/models/lin.mar", "--no-tokens")
    took_s = []
    for number in range(STARTS):
        began = time.monotonic()
        with Hosted(tmp_path / f"{number}", *words, before=before, program=program) as host:
            host.ready()
            answer = exchange(host.address, "POST", "/predictions/lin", [[1, 2, 3]])
            took_s.append(time.monotonic() - began)
            assert answer == (200, b"[[16.0,22.0]]")
            status = Path(f"/proc/{host.process.pid}/status").read_text()
            assert "Uid:\t1000\t1000\t1000\t1000" in status
            assert "CapEff:\t0000000000000000" in status
            host.terminate()
            assert host.wait() == 0
    assert min(took_s) < START_S, took_s
