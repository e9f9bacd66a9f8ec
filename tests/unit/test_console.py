"""Each error is one line with its code; the exit code says whose fault it was."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest

from marship import console
from marship.cli import tables
from marship.engines.home import Home, ServerRecord
from marship.engines.processes import Group, boot_id, start_time
from marship.errors import MarshipError
from marship.trust.archive import CONFIG_FILE, EVIDENCE_FILE, MANIFEST_FILE

pytestmark = pytest.mark.slow

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b1m\u202e\rx[bold][/]"
MODEL = {"modelName": "m", "modelVersion": "1.0", "handler": "h.py"}
SHOWN = r"\u001b[2J\u001b]0;title\u0007\u009b1m\u202e\u000dx[bold][/]"

PROGRAM = """
import signal, sys, typer
from pathlib import Path
from marship import console, errors
app = typer.Typer()

@app.command()
def main(what: str, number: int = 0) -> None:
    if what == "wait":
        try:
            print("waiting", flush=True)
            signal.pause()
        finally:
            print("undoing", flush=True)
            Path(sys.argv[0]).with_name("undone").touch()
            if number:
                signal.pause()
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


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_undoes_what_was_begun(program: list[str], number: int, code: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP run the cleanup and leave with the shell's codes."""
    with subprocess.Popen([*program, "wait"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(10) == code
    assert Path(program[1]).with_name("undone").exists()


def test_a_closed_terminal_undoes_what_was_begun(program: list[str]) -> None:
    """Though the cleanup prints to it; SIGHUP comes twice, from the kernel and from the shell."""
    ours, theirs = os.openpty()
    words = ["setsid", "--ctty", *program, "wait"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with process:
        assert os.read(ours, 7) == b"waiting"
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 143
    assert Path(program[1]).with_name("undone").exists()


def test_nohup_is_kept(program: list[str]) -> None:
    """What it started goes on when the terminal is closed."""
    words = ["nohup", *program, "wait"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        (line,) = (
            line
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("SigIgn:")
        )
        process.terminate()
        assert process.wait(10) == 143
    assert int(line.split()[1], 16) & 1 << (signal.SIGHUP - 1)


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


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """An archive that writes to the reader's terminal, wherever it may say something."""
    path = tmp_path / "x.mar"
    manifest = {"model": MODEL, "archiverVersion": f"a{HOSTILE}"}
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(MANIFEST_FILE, json.dumps(manifest))
        zipped.writestr(CONFIG_FILE, json.dumps({f"c{HOSTILE}": f"d{HOSTILE}"}))
        zipped.writestr(EVIDENCE_FILE, json.dumps({f"e{HOSTILE}": {f"f{HOSTILE}": f"g{HOSTILE}"}}))
    return path


def test_a_strangers_words_do_not_steer_the_terminal(hostile: Path) -> None:
    """Settings and evidence of an archive are shown with such characters as codes."""
    words = [sys.executable, "-m", "marship", "inspect", str(hostile)]
    wide = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=wide)
    for name in "acdefg":
        assert f"{name}{SHOWN}" in done.stdout, (name, done.stdout)
    told = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["manifest"]["archiverVersion"] == f"a{HOSTILE}"
    for text in (done.stdout, told.stdout):
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(text)


@pytest.mark.parametrize("place", ["modelName", "modelVersion", "handler", "configFile", "file"])
def test_a_strangers_names_do_not_steer_the_terminal(tmp_path: Path, place: str) -> None:
    """A name with such characters is refused, and the message shows them as codes."""
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(MANIFEST_FILE, json.dumps({"model": MODEL | {place: HOSTILE}}))
        zipped.writestr(HOSTILE if place == "file" else "h.py", b"")
    words = [sys.executable, "-m", "marship", "inspect", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(done.stderr)
    assert done.stderr.count("\n") == 1


STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_no_character_of_unicode_steers_the_terminal() -> None:
    """All 1,114,112 of them: by category, each as an escape that JSON reads back as itself."""
    whole = [chr(number) for number in range(sys.maxunicode + 1)]
    coded = [c for c in whole if unicodedata.category(c) in STEERING - {"Cs"}]
    coded = [c for c in coded if c not in "\t\n\u200c\u200d"]
    shown = console.seen("".join(coded))
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(f'"{shown}"') == "".join(coded)
    for half in range(0xD800, 0xE000):
        assert console.seen(chr(half)) == f"\\u{half:04x}"
    rest = "".join(sorted({*whole} - {*coded} - {c for c in whole if "\ud800" <= c <= "\udfff"}))
    assert console.seen(rest) == rest
    for letter in "\u200e\u200f\u061c\ufeff\u2028\u2029\U000e0001\U000e007f\U0010fffd\ud800":
        assert console.seen(f"a{letter}b") != f"a{letter}b"


def test_a_message_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """What a stranger wrote may be repeated in a message, and a megabyte of it is not shown."""
    with pytest.raises(SystemExit):
        console.fail(MarshipError("x" * 1_000_000))
    assert len(capsys.readouterr().err) < 5000


def test_an_error_steers_no_terminal() -> None:
    """Nor do messages; letters of any script, tabs and ends of lines stay."""
    words = [sys.executable, "-m", "marship", "inspect", f"{HOSTILE}.mar"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    one_line = SHOWN.replace(r"\u000d", " ")
    assert done.stderr.startswith(f"error (usage) {one_line}.mar must be")
    assert console.seen("tab\tend\n\u00e4\u200d\u3042") == "tab\tend\n\u00e4\u200d\u3042"


def test_an_interruption_while_the_commands_load_shows_no_trace(tmp_path: Path) -> None:
    """Ctrl-C at the first moment: nothing has begun, and the exit code says what it was."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "marship", "--version"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


PRINTS = """
import sys
from marship import console
from marship.cli import tables
from marship.errors import UsageError

def main():
    name = sys.argv[1]
    tables.facts([("path", name), ("second " + name, 1)])
    tables.grid(("name", "n"), [(name, 1), (name, 2)])
    with console.err.status(name), console.progress() as bar:
        bar.add_task(name, total=1, completed=1)
    console.write_json({name: name})
    console.err.print(name)
    raise UsageError(f"{name} must be b.")

console.run(lambda standalone_mode: main())
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["folder \xfc", "\u65e5\u672c", "a" * 301, "word " * 60])
def test_what_is_piped_is_whole_in_every_encoding(encoding: str, name: str) -> None:
    """Tables, progress, JSON and errors: no traceback, no broken line, no blanks at ends."""
    name = name.strip()
    known = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "40", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, name],
        env=known,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    out = done.stdout.decode(encoding).splitlines()
    shown = name.encode(encoding, "backslashreplace").decode(encoding)
    assert out[0].split(maxsplit=1) == ["path", shown]
    assert [line.split() for line in out[3:5]] == [[*shown.split(), "1"], [*shown.split(), "2"]]
    assert json.loads("\n".join(out[5:])) == {name: name}
    assert not any(line.endswith(" ") for line in out)


def test_a_pipe_that_lacks_a_letter_takes_no_text_with_codes() -> None:
    """A transcript with codes would be another text: it is refused, with what to do."""
    program = "from marship import console; console.run(lambda **_: console.write('caf\\xe9'))"
    known = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=known, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "U+00E9. Set PYTHONIOENCODING=utf-8" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "console.out.print('a')",
        "console.write('a')",
        "console.write_json({})",
        "console.write('a' * (1 << 20))",
        "print('a')",
    ],
)
def test_an_output_that_does_not_fit_is_one_line(code: str) -> None:
    """A full device, whether that shows at once or when the last bytes are flushed."""
    program = f"from marship import console; console.run(lambda **_: {code})"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error (storage) the output must fit on the device")
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_no_error() -> None:
    """As with `>&-`: Python has no standard output then."""
    program = "from marship import console; console.run(lambda **_: console.out.print('a'))"
    words = ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, program]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_direct_address_that_nobody_serves_is_shown_as_such(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, is_alive: bool
) -> None:
    """Clients of the home use TorchServe's own address meanwhile."""
    record = ServerRecord(
        pid=1, created=0.0, boot=boot_id(), inference_url="http://a:1", management_url="http://a:2",
        metrics_url="http://a:3", model_store="store", tmp="tmp",
    )  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        acceptor = Group(process.pid, start_time(process.pid), boot_id())
        if is_alive:
            tables.show_server(record.with_direct("http://a:4", acceptor, "a:5"), Home(tmp_path))
        process.kill()
    if not is_alive:
        tables.show_server(record.with_direct("http://a:4", acceptor, "a:5"), Home(tmp_path))
    shown = capsys.readouterr().out
    assert "http://a:4" in shown
    assert shown.count("not running: restart the server") == (0 if is_alive else 2)


def test_threads_mute_logs_at_once_and_leave_in_any_order() -> None:
    """The highest level of those within counts; when all have left, what held before holds."""
    before = logging.root.manager.disable
    first, second = console.muted(logging.WARNING), console.muted(logging.CRITICAL)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.CRITICAL
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before
    with pytest.raises(KeyError), console.muted(logging.WARNING):
        raise KeyError
    assert logging.root.manager.disable == before


def test_muted_logs_leave_a_level_as_they_found_it(caplog: pytest.LogCaptureFixture) -> None:
    """Someone's own level is the least that is muted."""
    logging.disable(logging.ERROR)
    try:
        with console.muted(logging.WARNING):
            logging.error("no")
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
    with console.muted(logging.WARNING):
        logging.warning("no")
        logging.error("yes")
    assert caplog.messages == ["yes"]
