"""`marship doctor`: what this machine has, what it lacks, and what mends that."""

from marship.operate.doctor import machine, software, torchserve
from marship.operate.doctor.finding import Finding


def examine() -> list[Finding]:
    """Everything that can be seen without starting a server."""
    return [
        software.python(),
        *software.packages(),
        torchserve.java(),
        machine.cores(),
        machine.instructions(),
        machine.memory(),
        *machine.disks(),
        *machine.limits(),
        *torchserve.ports(),
    ]
