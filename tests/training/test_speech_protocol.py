"""The protocol's cells, what it chooses on whom, and that a stopped run goes on."""

import fcntl
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from marship.errors import TrainingError, UsageError
from marship.fit.recipe import resolve
from recipes import REPOSITORY

SPEAKERS = ("ann", "bob", "cem")


@pytest.fixture(scope="module")
def protocol() -> ModuleType:
    """training/speech_protocol.py."""
    name = str(REPOSITORY / "training/speech_protocol.py:cells")
    return sys.modules[resolve(name).__module__]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """One recording of each speaker."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for speaker in SPEAKERS:
        soundfile.write(folder / f"1_{speaker}_0.wav", np.ones(80), 8000)
    return folder


def row(protocol: ModuleType, variant: str, errors: dict[str, float], seed: str = "1") -> Any:
    """A row with these errors of the speakers left out."""
    return protocol.Row(protocol.Cell(variant, tuple(errors), seed), errors, 0.5, 600.0)


@pytest.mark.parametrize(("leave", "groups"), [(1, 3), (2, 3)])
def test_every_speaker_is_left_out(protocol: ModuleType, leave: int, groups: int) -> None:
    """Once for each seed and variant; `only` keeps the cells of some."""
    settings = protocol.Settings(leave=leave, seeds=("1", "2"), variants=("recipe", "no noise"))
    found = list(protocol.cells(SPEAKERS, settings))
    assert len(found) == len({cell.name() for cell in found}) == groups * 4
    for name in SPEAKERS:
        assert sum(name in cell.left_out for cell in found) == leave * 4
    settings = protocol.Settings(leave=leave, variants=("all",), only=("bob",))
    found = list(protocol.cells(SPEAKERS, settings))
    assert len(found) == leave * len(protocol.VARIANTS)
    assert all("bob" in cell.left_out for cell in found)


def test_what_is_unknown_is_refused(protocol: ModuleType) -> None:
    """With the names that there are."""
    with pytest.raises(UsageError, match=r"variants must be of recipe, .*, got 'louder'"):
        list(protocol.cells(SPEAKERS, protocol.Settings(variants=("louder",))))
    with pytest.raises(UsageError, match="only must be of ann, bob, cem, got 'dora'"):
        list(protocol.cells(SPEAKERS, protocol.Settings(only=("dora",))))


def test_too_few_speakers_are_refused(protocol: ModuleType) -> None:
    """Whoever is left out, somebody must be left to learn from."""
    with pytest.raises(UsageError, match="of more than 2 speakers, got ann, bob"):
        list(protocol.cells(("ann", "bob"), protocol.Settings(leave=2)))


def test_a_quick_look_is_another_cell(protocol: ModuleType) -> None:
    """Rows of fewer epochs are not those of the recipe, and what is named twice is trained once."""
    settings = protocol.Settings(seeds=("1", "1"), variants=("recipe", "recipe"))
    full = list(protocol.cells(SPEAKERS, settings))
    assert len(full) == len(SPEAKERS)
    quick = list(protocol.cells(SPEAKERS, protocol.Settings(epochs=1)))
    assert not {cell.name() for cell in full} & {cell.name() for cell in quick}


def test_two_at_once_are_refused(protocol: ModuleType, recordings: Path, tmp_path: Path) -> None:
    """The second ends in one line, and the first one's files are as they were."""
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="one run at a time"):
            protocol.main.__wrapped__(recordings, settings=protocol.Settings(out=out))
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_variants_change_settings_of_the_scripts(protocol: ModuleType) -> None:
    """Each flag of a variant is one of the script that gets it, and differs from its default."""
    scripts = [
        sys.modules[resolve(str(REPOSITORY / f"training/{name}.py:Settings")).__module__].Settings
        for name in ("spoken_digits", "speech")
    ]
    for words in protocol.VARIANTS.values():
        for settings, flags in zip(scripts, words, strict=True):
            for name, value in zip(flags[::2], flags[1::2], strict=True):
                default = getattr(settings(), name.removeprefix("--").replace("-", "_"))
                assert str(default) != value
                assert default is None or type(default)(value) != default


def test_a_variant_is_chosen_on_the_others_alone(protocol: ModuleType) -> None:
    """The best for the judged speaker is not taken where the others have more errors with it."""
    errors = {"recipe": 5.0, "no noise": 6.0}
    pairs = (("ann", "bob"), ("ann", "cem"), ("bob", "cem"))
    rows = [
        row(protocol, variant, dict.fromkeys(pair, error))
        for variant, error in errors.items()
        for pair in pairs
    ]
    rows[0].errors["bob"] = rows[2].errors["cem"] = 9.0
    lines = protocol.by_choice(rows).splitlines()[2:]
    # ann's other is bob, 9, and cem, 5, with the recipe; cem's are ann and bob, 5 each
    assert lines == [
        "| ann | no noise | 6.00 ± 0.0 | 6.00 ± 0.0 |",
        "| bob | no noise | 6.00 ± 0.0 | 6.00 ± 0.0 |",
        "| cem | recipe | 5.00 ± 0.0 | 7.00 ± 2.8 |",
        "| mean |  |  | 6.33 ± 0.6 |",
    ]


def test_variants_are_compared_in_equal_trainings(protocol: ModuleType) -> None:
    """The difference's spread is that of the differences, not of the speakers."""
    errors = {"recipe": (4.0, 8.0), "no noise": (5.0, 9.0)}
    rows = [
        row(protocol, variant, {name: error})
        for variant, both in errors.items()
        for name, error in zip(("ann", "bob"), both, strict=True)
    ]
    head, _, *lines = protocol.by_variant(rows).splitlines()
    assert "more than recipe" in head
    assert lines == [
        "| recipe | 2 | 6.00 ± 2.8 | 0.00 ± 0.0 | 0.50 ± 0.0 | 10.00 ± 0.0 |",
        "| no noise | 2 | 7.00 ± 2.8 | 1.00 ± 0.0 | 0.50 ± 0.0 | 10.00 ± 0.0 |",
    ]


def test_speakers_are_listed_by_seed(protocol: ModuleType) -> None:
    """Those of the first variant alone; the last line is the mean over speakers."""
    rows = [
        row(protocol, variant, {name: error + extra}, seed)
        for variant, extra in (("recipe", 0.0), ("no noise", 50.0))
        for seed, name, error in (
            *(("1", "ann", 4.0), ("1", "bob", 6.0)),
            *(("2", "ann", 6.0), ("2", "bob", 8.0)),
        )
    ]
    assert protocol.by_speaker(rows).splitlines() == [
        "| left out | seed 1 | seed 2 | mean |",
        "|---|---|---|---|",
        "| ann | 4.0 | 6.0 | 5.00 ± 1.4 |",
        "| bob | 6.0 | 8.0 | 7.00 ± 1.4 |",
        "| mean | 5.0 | 7.0 | 6.00 ± 1.4 |",
    ]


WORDS = {"ann": 10, "bob": 20, "cem": 60}
"""Words of each speaker in the test."""


class Commands:
    """What stands for the two scripts: it writes some of their files, and fails where it is to."""

    def __init__(self) -> None:
        """Nothing was called, and nothing fails."""
        self.called: list[tuple[str, ...]] = []
        self.failing = ""

    def __call__(self, script: str, *words: str) -> None:
        """Write a file that is there early, and metrics.json at the end."""
        self.called.append((script, *words))
        out = Path(words[words.index("--run-dir" if script == "speech.py" else "--out") + 1])
        out.mkdir(parents=True, exist_ok=script == "speech.py")
        (out / "checkpoint.pt").touch()
        if script == self.failing:
            raise TrainingError("stopped")
        rates = {n: {"words": count, "word_error_rate": count / 100} for n, count in WORDS.items()}
        (out / "metrics.json").write_text(json.dumps({"test": {"speakers": rates}}))

    def scripts(self) -> list[str]:
        """What was called since this was asked."""
        found = [one[0] for one in self.called]
        self.called.clear()
        return found


def test_a_stopped_run_goes_on(
    protocol: ModuleType, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-written data are written anew, training is resumed, and what is done is not repeated."""
    commands = Commands()
    monkeypatch.setattr(protocol, "command", commands)
    settings = protocol.Settings(out=tmp_path / "out", variants=("recipe",))
    cell = next(protocol.cells(SPEAKERS, settings))
    for failing, called in (
        ("spoken_digits.py", ["spoken_digits.py"]),
        ("speech.py", ["spoken_digits.py", "speech.py"]),
    ):
        commands.failing = failing
        with pytest.raises(TrainingError):
            protocol.train(cell, recordings, settings)
        assert "--resume" not in commands.called[-1]
        assert commands.scripts() == called
    commands.failing = ""
    found = protocol.train(cell, recordings, settings)
    assert "--resume" in commands.called[-1]
    assert commands.scripts() == ["speech.py"]
    assert found.errors == {"ann": pytest.approx(10.0)}
    assert found.known == pytest.approx((20 * 20 + 60 * 60) / 80)
    assert protocol.train(cell, recordings, settings) == found
    assert commands.scripts() == []
    kept = {path.name for path in (tmp_path / "out" / cell.name()).iterdir()}
    assert kept == {"metrics.json", "row.json"}


def test_the_flags_of_a_cell_reach_the_scripts(
    protocol: ModuleType, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is left out, the seed and the variant's flags; the whole script writes the tables."""
    commands = Commands()
    monkeypatch.setattr(protocol, "command", commands)
    variants = ("synthetic voices", "no rooms")
    settings = protocol.Settings(
        out=tmp_path / "out", leave=2, seeds=("7",), variants=variants, only=("ann",), epochs=3
    )
    protocol.main.__wrapped__(recordings, settings=settings)
    assert len(commands.called) == 2 * 2 * 2
    flags = [" ".join(one) for one in commands.called]
    assert all("--leave-out ann --leave-out" in words for words in flags[::2])
    assert all("--seed 7" in words for words in flags)
    assert [words.count("--synthetic 0") for words in flags] == [1, 0, 0, 0] * 2
    assert [words.count("--echo 0 ") for words in (f"{one} " for one in flags)] == [0, 0, 0, 1] * 2
    assert [words.count("--epochs 3") for words in flags] == [0, 1] * 4
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "| ann | synthetic voices | 40.00 ± 28.3 | 10.00 ± 0.0 |" in tables
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 4


def test_a_script_that_fails_ends_the_run(
    protocol: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own message is seen before."""
    with pytest.raises(TrainingError, match=r"spoken_digits.py must succeed, got exit code 2"):
        protocol.command("spoken_digits.py", "nowhere")
    assert "nowhere must hold files like" in capfd.readouterr().err
