"""The machine, and the container around this process."""

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from marship.operate.doctor.finding import MEND, NOTE, Finding
from marship.serving.model import memory as memories
from marship.serving.model.session import usable_cores

CPUINFO = Path("/proc/cpuinfo")
PIDS = Path("/sys/fs/cgroup/pids.max")
_GB = 1 << 30
_JAVA_AND_WORKER_BYTES = 1 * _GB
"""Java's heap of 512 MB as shipped and what it needs beside it, and one worker."""
_ROOMY_BYTES = 2 * _GB
_FREE_DISK_BYTES = 1 * _GB
_MOST_LISTED = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
_LISTED_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")
_DOTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
"""Instructions that add products of 8-bit integers."""
_OPEN_FILES, _PROCESSES = 4096, 1024


def cores() -> Finding:
    """Those that this process may use, of those that there are."""
    usable, there = usable_cores(), os.cpu_count() or 1
    found = f"{usable} of {there}"
    if usable == 1:
        advice = "Give a server two or more: here Java and a worker take turns on one."
        return Finding("cores", found, NOTE, advice)
    if usable < there:
        advice = "Others are kept from this process by affinity or a quota; threads follow it."
        return Finding("cores", found, NOTE, advice)
    return Finding("cores", found)


def instructions() -> Finding:
    """The vector instructions that ONNX Runtime's kernels are chosen by."""
    flags = _flags()
    listed = [name for name in (*_MOST_LISTED, *_LISTED_ARM) if name in flags]
    found = f"{platform.machine()}: {', '.join(listed) or 'no vector instructions known'}"
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        advice = "Run where the processor has AVX2: float models are several times slower without."
        return Finding("instructions", found, NOTE, advice)
    if flags and not _DOTS & flags:
        advice = "Expect little of int8 variants here, and optimize where the model will be served."
        return Finding("instructions", found, NOTE, advice)
    return Finding("instructions", found)


def _flags() -> set[str]:
    """The first processor's features, as the kernel names them; empty where it does not."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    found = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return set(found[0].split()) if found else set()


def memory() -> Finding:
    """What is free, on the machine and within a container's limit."""
    left = memories.available()
    if left is None:
        return Finding("memory", "unknown")
    found = f"{left / _GB:.1f} GB free"
    if left < _JAVA_AND_WORKER_BYTES:
        advice = "Free 1 GB, or raise the container's limit: Java takes half of it, workers more."
        return Finding("memory", found, MEND, advice)
    if left < _ROOMY_BYTES:
        advice = "Enough for small models and few workers; `marship check` measures a model's need."
        return Finding("memory", found, NOTE, advice)
    return Finding("memory", found)


def folder() -> Finding:
    """The folder in which the command runs."""
    try:
        return Finding("folder", str(Path.cwd()))
    except OSError as error:
        return Finding("folder", f"none: {error.strerror}", MEND, "Change to a folder that exists.")


def disks() -> Iterator[Finding]:
    """Where archives are packed, and where servers extract them."""
    for subject, folder, advice in (
        ("disk here", Path.cwd(), "Free 1 GB, or work in another folder."),
        ("temporary disk", Path(tempfile.gettempdir()), "Free 1 GB, or set TMPDIR to another."),
    ):
        free = shutil.disk_usage(folder).free
        found = f"{free / _GB:.1f} GB free in {folder}"
        is_short = free < _FREE_DISK_BYTES
        yield Finding(subject, found, MEND, advice) if is_short else Finding(subject, found)


def limits() -> Iterator[Finding]:
    """Open files, of which each connection is one, and processes, of which threads are some."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _limit("open files", files, _OPEN_FILES, "ulimit -Hn 65536, or LimitNOFILE= of systemd")
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    yield _limit("processes", processes, _PROCESSES, "ulimit -Hu 4096, or LimitNPROC= of systemd")
    try:
        most = PIDS.read_text().strip()
    except OSError:
        return
    if most.isdecimal():
        advice = "the container's limit of processes, such as podman's --pids-limit"
        yield _limit("processes here", int(most), _PROCESSES, advice)


def _limit(subject: str, most: int, wanted: int, means: str) -> Finding:
    if most == resource.RLIM_INFINITY:
        return Finding(subject, "no limit")
    if most < wanted:
        return Finding(subject, f"at most {most}", NOTE, f"Allow {wanted} or more: {means}.")
    return Finding(subject, f"at most {most}")
