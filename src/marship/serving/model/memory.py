"""Available memory."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def has_room(size_bytes: int) -> bool:
    """Whether that much memory is available, on the machine and in a container."""
    left = available()
    return left is None or left >= size_bytes


def available() -> int | None:
    """Bytes that can be taken, on the machine and in a container; None if that is unknown."""
    return min(
        (left for left in (_of_machine(), _of_container()) if left is not None), default=None
    )


def _of_machine() -> int | None:
    """`MemAvailable` of proc(5), in bytes; None if it is unknown."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _of_container() -> int | None:
    """The limit minus memory that cannot be reclaimed; None without a limit (cgroup v2)."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
