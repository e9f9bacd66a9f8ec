"""A state file is read with its faults named, and compared with what a server has."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from homes import of_a_server
from marship import Client
from marship.client.clients import Model, ModelStatus
from marship.engines.engine import Note, Worker
from marship.engines.torchserve import store
from marship.errors import NotFoundError, SignatureError, UsageError
from marship.operate import rollout, state, statefile
from marship.operate.state import Change, Version
from marship.operate.statefile import Entry
from marship.trust.signature import sign
from signed import FILES, make_key, trusting, write

DOCS = Path(__file__).parents[3] / "docs" / "rollout.md"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[modell]]\narchive = 'a.mar'", r"got 'modell'\. Did you mean model\?"),
        ("[[model]]\narchive = 'a.mar'\nworker = 1", r"line 1 .*'worker'\. Did you mean workers\?"),
        ("\n\n[[model]]\nworkers = 1", "line 3 must name an archive, got none"),
        ("[[model]]\narchive = 'a.mar'\n[[model]]\narchive = 2", "archive in .*line 3 must be the"),
        ("[[model]]\narchive = 'a.mar'\nworkers = 0", "workers in .* 1 or more, got 0"),
        ("[[model]]\narchive = 'a.mar'\nworkers = true", "workers in .* 1 or more, got True"),
        ("[[model]]\narchive = 'a.mar'\nprofile = 'fast'", "latency or throughput, got 'fast'"),
        ("[[model]]\narchive = 'a.mar'\ndefault = 1", "default in .* true or false, got 1"),
        ("[model]\narchive = 'a.mar'", r"a \[\[model\]\] for each version"),
        ("model = [{archive = 'a.mar', x = 1}]", "state.toml must hold known names only, got 'x'"),
        ("[[model]]\narchive = \n", "readable TOML file.*line 2"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The line, the name that is near, or the rule."""
    file = tmp_path / "state.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        statefile.read(file)


def test_entries_are_read_with_their_lines(tmp_path: Path) -> None:
    """What is not said is the archive's to say."""
    file = tmp_path / "state.toml"
    file.write_text(
        "[[model]]\narchive = 'a.mar'\n\n[[model]]\narchive = 'b.mar'\nworkers = 2\n"
        "profile = 'throughput'\nname = 'c'\ndefault = true\n"
    )
    assert statefile.read(file) == [
        Entry(f"{file}, line 1", "a.mar"),
        Entry(f"{file}, line 4", "b.mar", "c", 2, "throughput", True),
    ]
    file.write_text("")
    assert statefile.read(file) == []


def test_the_example_in_the_docs_is_a_state_file(tmp_path: Path) -> None:
    """With all that an entry may say."""
    (text,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    file = tmp_path / "state.toml"
    file.write_text(text)
    entries = statefile.read(file)
    assert [entry.archive for entry in entries] == [
        "recommend-2.0.mar",
        "recommend-1.0.mar",
        "tagger.mar",
    ]
    said = {name for entry in entries for name, value in asdict(entry).items() if value}
    assert said == {item.name for item in fields(Entry)}


def wanted(version: str, *, default: bool = True, **settings: object) -> Version:
    """A version of the model `m`, from an archive of its own."""
    entry = Entry(f"state.toml ({version})", f"m-{version}.mar", **settings)  # type: ignore[arg-type]
    return Version(entry, "m", version, default)


def running(
    *versions: str, default: str, workers: int = 1, batch: int = 1, ready: int | None = None
) -> Model:
    """The model `m` as a server has it."""
    count = workers if ready is None else ready
    there = tuple(Worker(str(n), 1, ready=True) for n in range(count))
    return Model(
        "m",
        default,
        tuple(
            ModelStatus("m", v, f"m-{v}.mar", workers, workers, batch, 1, 60, False, there)
            for v in versions
        ),
    )


def kinds(changes: Sequence[Change]) -> list[str]:
    """What is done, to which version."""
    return [f"{change.kind} {change.version}" for change in changes]


def test_the_default_is_registered_first() -> None:
    """TorchServe makes the first version of a model the default."""
    both = [wanted("1.0", default=False), wanted("2.0")]
    assert kinds(state.compare(both, [])) == ["register 2.0", "register 1.0"]


@pytest.mark.parametrize("step", ["describe", "drain", "unregister"])
def test_a_version_that_another_client_removes_is_gone_as_wanted(step: str) -> None:
    """Whenever it goes; the changes after it are made."""
    (status,) = running("1.0", default="1.0").versions
    gone, calls = set[str](), list[str]()

    class Server:
        def _at(self, here: str, version: str) -> None:
            calls.append(f"{here} {version}")
            if here == step and version == "1.0":
                gone.add(version)
            if version in gone:
                raise NotFoundError("m version 1.0 must be registered, got no such model.")

        def describe(self, _: str, version: str = "2.0") -> list[ModelStatus]:
            self._at("describe", version)
            return [dataclasses.replace(status, version=version)]

        def drain(self, _: str, version: str, *, timeout_s: float) -> None:
            del timeout_s
            self._at("drain", version)

        def unregister(self, _: str, version: str) -> None:
            self._at("unregister", version)

    told: list[str] = []

    class Listener(rollout.RolloutListener):
        def on_done(self, step: str, detail: str) -> None:
            told.append(f"{step} {detail}")

    server: Any = Server()
    changes = [Change("remove", "m", version) for version in ("1.0", "3.0")]
    state.carry_out(server, changes, Listener())
    assert told == ["remove m 1.0: was unregistered already", "remove m 3.0: is unregistered"]
    assert calls[-1] == "unregister 3.0"


def test_a_new_version_takes_over_and_the_old_one_stays_unless_pruned() -> None:
    """Registered, made the default, and then the old one can go."""
    there = [running("1.0", default="1.0")]
    kept = state.compare([wanted("2.0")], there)
    assert kinds(kept) == ["register 2.0", "default 2.0", "keep 1.0"]
    pruned = state.compare([wanted("2.0")], there, prune=True)
    assert kinds(pruned) == ["register 2.0", "default 2.0", "remove 1.0"]


def test_nothing_is_done_to_what_is_right() -> None:
    """Workers that the file does not name are as they are."""
    there = [running("1.0", default="1.0", workers=3)]
    assert state.compare([wanted("1.0")], there) == []
    assert state.compare([wanted("1.0", workers=3)], there) == []
    assert kinds(state.compare([wanted("1.0", workers=2)], there)) == ["scale 1.0"]


@pytest.mark.parametrize("ready", [0, 2, 4])
def test_workers_that_are_not_as_the_server_lists_them_are_scaled_again(ready: int) -> None:
    """A `scale` that was killed has listed the new number, and not changed the workers."""
    there = [running("1.0", default="1.0", workers=3, ready=ready)]
    (change,) = state.compare([wanted("1.0", workers=3)], there)
    assert (change.kind, change.detail) == ("scale", f"workers ready: {ready} of 3")
    assert state.compare([wanted("1.0")], there) == []


def test_of_a_model_that_goes_the_default_goes_last() -> None:
    """TorchServe refuses to remove the default version before the others."""
    there = [running("1.0", "2.0", "3.0", default="1.0")]
    assert kinds(state.compare([], there, prune=True)) == ["remove 2.0", "remove 3.0", "remove 1.0"]


def test_what_cannot_be_changed_while_it_runs_is_reported() -> None:
    """Another archive under the same version, and other batches."""
    there = [running("1.0", default="1.0")]
    other = Version(Entry("line 1", "other.mar"), "m", "1.0", True)
    with pytest.raises(UsageError, match=r"line 1 must name .*m-1\.0\.mar, got other\.mar"):
        state.compare([other], there)
    with pytest.raises(UsageError, match="1 within 1 ms, got profile throughput"):
        state.compare([wanted("1.0", profile="throughput")], there)
    assert state.compare([wanted("1.0", profile="latency")], there) == []


def test_an_archive_that_is_another_by_now_is_refused() -> None:
    """Under a version that runs; one that does not run is registered as it is."""
    changed = dataclasses.replace(wanted("1.0"), is_changed=True)
    with pytest.raises(UsageError, match=r"got another m-1\.0\.mar by now\. Package another"):
        state.compare([changed], [running("1.0", default="1.0")])
    assert kinds(state.compare([changed], [])) == ["register 1.0"]


def test_a_change_is_seen_by_what_was_noted(tmp_path: Path) -> None:
    """The same files again are no change, one other file is; what was never noted is not known."""
    home = of_a_server(tmp_path)
    write(tmp_path / "lin.mar")
    entries = [Entry("state.toml", "lin.mar")]

    def is_changed() -> bool:
        (version,) = state.resolve(Client(home.path), entries)
        return version.is_changed

    assert not is_changed()
    files = store.files_of(tmp_path / "lin.mar")
    assert files
    store.write_note(home, "lin", "1.0", Note("1", files))
    write(tmp_path / "lin.mar")
    assert not is_changed()
    write(tmp_path / "lin.mar", {**FILES, "handler.py": b"class Another: pass\n"})
    assert is_changed()


def test_where_keys_are_trusted_what_nobody_signed_is_not_parsed(tmp_path: Path) -> None:
    """The signature is looked at first; what is signed is read."""
    key = make_key(tmp_path)
    home = of_a_server(tmp_path, trust=str(trusting(tmp_path / "trust", key).folder))
    sign(write(tmp_path / "lin.mar"), key)
    assert rollout.read(Client(home.path), "lin.mar").name == "lin"
    write(tmp_path / "lin.mar", {**FILES, "evidence.json": b"["})
    with pytest.raises(SignatureError, match=r"got added: evidence\.json"):
        rollout.read(Client(home.path), "lin.mar")
