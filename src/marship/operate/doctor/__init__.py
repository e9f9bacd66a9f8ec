"""`marship doctor`: what this machine has, what it lacks, and what mends that."""

from marship.operate.doctor import machine, software, torchserve
from marship.operate.doctor.finding import Finding


def examine() -> list[Finding]:
    """Everything that can be seen without starting a server."""
    folder = machine.folder()
    if not folder.is_ok:
        return [folder]  # packages, disks, home and settings are looked for from there
    return [
        folder,
        software.python(),
        *software.packages(),
        torchserve.java(),
        machine.cores(),
        machine.instructions(),
        machine.memory(),
        *machine.disks(),
        *machine.limits(),
        torchserve.home(),
        *torchserve.ports(),
    ]
