"""A server's processes end when they are told to, and when they do not listen."""

import os
import subprocess
import sys
import time

import psutil

from marship.engines.processes import Group, boot_id, start_time

FAMILY = """
import signal, subprocess, sys
words = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
child = subprocess.Popen(words, stdout=subprocess.PIPE)
child.stdout.readline()
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
signal.pause()
"""


def family(mood: str) -> tuple[subprocess.Popen[str], Group]:
    """A process with a child in a group of their own, as Java and a worker are."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY, mood],
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == "\n"
    return leader, Group(leader.pid, start_time(leader.pid), boot_id())


def running(group: Group) -> list[psutil.Process]:
    """Whoever is in the group and is not a zombie that init has not reaped."""
    return [
        process
        for process in psutil.process_iter(["status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group.pid
    ]


def test_the_whole_family_ends() -> None:
    """The leader at SIGTERM, its child, which nobody told, after the grace."""
    leader, group = family("good")
    assert len(group.members()) == 2
    group.end(grace_s=0.5)
    assert not running(group)
    leader.communicate(timeout=5)


def test_who_ignores_the_signal_is_killed() -> None:
    """After the grace, and no earlier."""
    leader, group = family("deaf")
    start_time = time.monotonic()
    group.end(grace_s=0.5)
    assert time.monotonic() - start_time >= 0.5
    assert not running(group)
    leader.communicate(timeout=5)


def test_another_group_with_the_same_number_is_left_alone() -> None:
    """The number was given to someone else: nothing is sent to them."""
    leader, group = family("good")
    stranger = Group(group.pid, group.created - 60, group.boot)
    assert not stranger.is_alive()
    stranger.end(grace_s=0.1)
    stranger.kill()
    assert leader.poll() is None
    group.kill()
    leader.communicate(timeout=5)
