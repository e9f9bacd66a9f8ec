"""Each error is one line with its code; the exit code says whose fault it was."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time, typer
from pathlib import Path
from marship import console, errors
app = typer.Typer()

@app.command()
def main(what: str, number: int = 0) -> None:
    if what == "wait":
        try:
            print("waiting", flush=True)
            time.sleep(30)
        finally:
            Path(sys.argv[0]).with_name("undone").touch()
            if number:
                print("undoing", flush=True)
                time.sleep(30)
    if what == "missing":
        open("/absent/file")
    if what == "bug":
        raise ZeroDivisionError
    kind = {"usage": errors.UsageError, "data": errors.DataError}[what]
    raise kind("a must be b,\\ngot c. Do d.")

console.run(app)
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """The command that runs a small program on the console."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["usage"], 2, "error (usage) a must be b, got c. Do d."),
        (["data"], 1, "error (data) a must be b, got c. Do d."),
        (["missing"], 1, "error (internal) /absent/file: No such file or directory."),
        (["data", "--number", "x"], 2, "error (usage) Invalid value for '--number'"),
        (["data", "--absent"], 2, "error (usage) No such option: --absent"),
    ],
)
def test_an_error_is_one_line(program: list[str], words: list[str], code: int, line: str) -> None:
    """Our own errors, the system's and wrong flags are one line; 2 is usage, 1 failure."""
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_trace(program: list[str]) -> None:
    """With --debug, wherever it stands, the stack is printed."""
    done = subprocess.run(
        [*program, "--debug", "data"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr


def test_a_bug_is_not_dressed_up(program: list[str]) -> None:
    """An exception that nobody foresaw keeps its trace: hiding it would hide the fault."""
    done = subprocess.run([*program, "bug"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_undoes_what_was_begun(program: list[str], number: int, code: int) -> None:
    """Ctrl-C and SIGTERM run the cleanup and leave with the shell's codes."""
    with subprocess.Popen([*program, "wait"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(10) == code
    assert Path(program[1]).with_name("undone").exists()


def test_a_second_ctrl_c_is_honoured(program: list[str]) -> None:
    """While the first is being honoured, a second one ends the program at once."""
    words = [*program, "wait", "--number", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.readline()
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - started < 5
