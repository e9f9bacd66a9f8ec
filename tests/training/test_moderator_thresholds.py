"""False alarms and misses of the moderator, by threshold."""

import json
from pathlib import Path

from recipes import run_recipe


def predictions(path: Path, *scores: float) -> str:
    """What `marship predict` writes for pictures of these scores."""
    rows = [{"file": f"{n}.jpg", "answer": {"score": score}} for n, score in enumerate(scores)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_shares_above_and_below(tmp_path: Path) -> None:
    """A picture at the threshold is an alarm; an unsafe one below it is a miss."""
    safe = predictions(tmp_path / "safe.jsonl", 0.001, 0.03, 0.4, 0.001)
    unsafe = predictions(tmp_path / "unsafe.jsonl", 0.9, 0.3)
    done = run_recipe("moderator_thresholds", safe, "--unsafe", unsafe)
    assert done.returncode == 0, done.stderr
    rows = {words[0]: words[1:] for words in map(cells, done.stdout.splitlines()) if words}
    assert rows["0.02"] == ["50.0%", "0.0%"]
    assert rows["0.4"] == ["25.0%", "50.0%"]
    assert rows["0.6"] == ["0.0%", "50.0%"]
    alone = run_recipe("moderator_thresholds", safe)
    assert "misses" not in alone.stdout


def cells(line: str) -> list[str]:
    """The words of a table's row."""
    return [word for word in line.replace("│", " ").replace("┃", " ").split() if word != "|"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file without scores, an empty one and none at all end with a line that says so."""
    (tmp_path / "other.jsonl").write_text('{"file": "a", "answer": {"label": "cat"}}')
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("other.jsonl", "empty.jsonl", "none.jsonl"):
        done = run_recipe("moderator_thresholds", str(tmp_path / name))
        assert done.returncode != 0
        assert name in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr
