"""A server's logs as one."""

import threading
from pathlib import Path

from typer.testing import CliRunner

from marship.cli.app import app
from marship.operate.logs import Logs
from waiting import until

WORKER = "2026-11-30T07:42:3{second},880 INFO  W-9000-{thread} - {text}\n"
DIED = "2026-11-30 07:42:35,000 worker 7 of m 1.0 died: signal 9 (SIGKILL).\n"
JAVA = """\
2026-11-30T07:42:34,000 ERROR W-9000-m_1.0 - Backend worker error
org.pytorch.serve.wlm.WorkerInitializationException: Backend worker did not respond
\tat org.pytorch.serve.wlm.WorkerThread.connect(WorkerThread.java:461)
\t... 7 more
"""


def line(second: int, text: str, thread: str = "m_1.0-stdout") -> str:
    """What a worker printed, as Java writes it."""
    return WORKER.format(second=second, thread=thread, text=text)


def home(folder: Path) -> list[Path]:
    """The files of a server."""
    console, workers, java, direct = (
        folder / name for name in ("console.log", "workers.log", "server.log", "direct.log")
    )
    console.write_text("WARNING: sun.reflect is not supported\nModel server started.\n")
    noise = line(0, "[PID]7") + line(0, "Torch worker started.") + line(0, "Listening on port: /a")
    workers.write_text(noise + line(1, "m ready") + line(6, "n ready", "n_m_1.0-stdout"))
    java.write_text(JAVA)
    direct.write_text(DIED)
    return [console, java, workers, direct]


def test_what_happened_stands_in_the_order_of_time_without_noise(tmp_path: Path) -> None:
    """Of all files; neither Java's start nor its stacks, but the exception that they begin with."""
    found = [entry.text for entry in Logs(home(tmp_path)).new()]
    assert [text.split(" - ")[-1].split("\n")[0] for text in found[:2]] == [
        "m ready",
        "Backend worker error",
    ]
    assert found[1].splitlines()[1].startswith("org.pytorch.serve.wlm.WorkerInit")
    assert len(found[1].splitlines()) == 2
    assert found[2:] == [DIED.strip(), line(6, "n ready", "n_m_1.0-stdout").strip()]


def test_no_entries_are_told(tmp_path: Path) -> None:
    """A model's name may be misspelt, or the server have said nothing yet."""
    (tmp_path / "home" / "logs").mkdir(parents=True)
    (tmp_path / "home" / "logs" / "server.log").touch()
    for words, about in (
        (["--model", "nope"], "no entries about nope. Names"),
        ([], "no entries. "),
    ):
        done = CliRunner().invoke(app, ["logs", "--home", str(tmp_path / "home"), *words])
        assert (done.exit_code, done.stdout) == (0, "")
        assert about in done.stderr


def test_a_server_that_does_not_start_shows_what_java_said(tmp_path: Path) -> None:
    """There nothing else tells why."""
    files = home(tmp_path)
    files[0].write_text("Error: Could not find or load main class\n")
    assert "Could not find" in Logs(files).new()[0].text


def test_one_models_entries_are_found_by_its_whole_name(tmp_path: Path) -> None:
    """Not those of a model whose name ends, begins or goes on with it."""
    files = home(tmp_path)
    with files[3].open("a") as file:
        file.write(DIED.replace("of m ", "of other-m ") + DIED.replace("of m ", "of m-2 "))
    assert [one.text for one in Logs(files, "m").new()][-1] == DIED.strip()
    assert [one.text.split(" - ")[-1] for one in Logs(files, "n_m").new()] == ["n ready"]
    assert Logs(files, "nobody").new() == []


def test_names_with_dots_and_names_that_are_words_are_told_apart(tmp_path: Path) -> None:
    """A dot may go on with a name, or end a sentence; each death begins with the word worker."""
    files = home(tmp_path)
    told = [DIED.replace(" of m ", f" of {name} ") for name in ("lin", "lin.2", "worker")]
    said = "2026-11-30 07:42:36,000 retry lin.\n"
    files[3].write_text("".join([*told, said]))
    for name, wanted in (("lin", [told[0], said]), ("lin.2", [told[1]]), ("worker", [told[2]])):
        assert [f"{one.text}\n" for one in Logs(files, name).new()] == wanted


def test_following_goes_on_after_a_rotation_and_waits_for_whole_lines(tmp_path: Path) -> None:
    """A line that is written in two parts is shown once it ends."""
    files = home(tmp_path)
    logs, seen = Logs(files, "m"), list[str]()
    logs.new()

    def follow() -> None:
        for entry in logs.follow():
            seen.append(entry.text.split(" - ")[-1])

    threading.Thread(target=follow, daemon=True).start()
    with files[2].open("a") as file:
        file.write(line(7, "first") + line(8, "sec")[:-1])
    until(lambda: "first" in seen, 10, "the first")
    with files[2].open("a") as file:
        file.write("ond\n")
    until(lambda: "second" in seen, 10, "the second")
    files[2].rename(tmp_path / "workers.1.log")
    files[2].write_text(line(9, "third"))
    until(lambda: "third" in seen, 10, "the third")
    assert seen == ["first", "second", "third"]
