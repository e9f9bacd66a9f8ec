"""Production refuses to start where anything lets others in, each in one line."""

import os
from pathlib import Path

import pytest

from marship.engines.home import Home
from marship.engines.torchserve import config, environment, production
from marship.errors import ServerError, UsageError

PLACES = ("home", "config.properties", "model_store", "model_store/a.mar")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home, a configuration and a model store, as they should be."""
    for folder in ("home", "model_store"):
        (tmp_path / folder).mkdir(mode=0o755)
    for file in ("config.properties", "model_store/a.mar"):
        (tmp_path / file).touch(mode=0o644)
    (tmp_path / "config.properties").write_text(config.PACKAGED.read_text())
    (tmp_path / "model_store" / "gone.mar").symlink_to("nowhere")
    return tmp_path


def check(place: Path, *, signed: bool = False, seal_key: str | None = None) -> None:
    """Check what lies there."""
    home, source = Home(place / "home"), place / "config.properties"
    values = config.resolve(
        source,
        home=home.path,
        model_store=place / "model_store",
        ports=dict.fromkeys(config.LISTENERS, 0),
        models=(),
        vault=home.verified if signed else None,
    )
    production.check(home, source, values, seal_key, is_signed=signed)


@pytest.mark.parametrize("signed", [True, False])
def test_the_packaged_settings_pass(place: Path, signed: bool) -> None:
    """In folders that belong to the user, where archives must be signed and where not."""
    check(place, signed=signed)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "inference_address=http://0.0.0.0:8080",
            "inference_address must be on loopback",
        ),
        (
            "metrics_address=http://0:8082",
            "metrics_address must be on loopback in",
        ),
        ("grpc_management_address=0.0.0.0", "grpc_management_port must be on loopback"),
        ("disable_token_authorization=true", "disable_token_authorization must be false"),
        ("enable_envvars_config=true", "enable_envvars_config must be false .* override this file"),
        ("install_py_dep_per_model=true", "install_py_dep_per_model must be false"),
        ("use_env_allowed_urls=true", "use_env_allowed_urls must be false"),
        ("allowed_urls=file://.*,https://.*", r"allowed_urls must name the model store alone"),
        ("model_snapshot={}", "model_snapshot must not be set"),
        ("system_metrics_cmd=python3 metrics.py", "system_metrics_cmd must not be set"),
        ("cors_allowed_origin=*", "cors_allowed_origin must name one origin"),
        ("workflow_store=/nowhere", "the workflow store must be there, got /nowhere"),
    ],
)
def test_a_setting_that_lets_others_in(place: Path, line: str, message: str) -> None:
    """The error names the line and what it must say."""
    source = place / "config.properties"
    source.write_text(f"{source.read_text()}\n{line}\n")
    with pytest.raises(UsageError, match=message) as caught:
        check(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_to(place: Path, name: str, mode: int) -> None:
    """The error names it, and the command that mends it; a store need not be ours with keys."""
    path = place / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(UsageError, match=f"owner alone, .* chmod go-w {path}"):
        check(place)
    if name.startswith("model_store"):
        check(place, signed=True)


@pytest.mark.parametrize("store", ["{place}/flows", "../flows", "$$MARSHIP_HOME$$/../flows"])
def test_a_workflow_store_outside_the_home(place: Path, store: str) -> None:
    """It must be ours as the model store must; TorchServe sees a relative path from the home."""
    source, flows = place / "config.properties", place / "flows"
    flows.mkdir(mode=0o755)
    source.write_text(f"{source.read_text()}\nworkflow_store={store.format(place=place)}\n")
    check(place)
    flows.chmod(0o777)
    with pytest.raises(UsageError, match=r"the workflow store must be writable by its owner alone"):
        check(place, signed=True)


@pytest.mark.parametrize("source", ["file:{}", "command:{} --of production"])
def test_a_seal_key_that_others_may_exchange(place: Path, source: str) -> None:
    """By way of the folder that the file, or the program that prints it, lies in."""
    folder = place / "keys"
    folder.mkdir(mode=0o755)
    (folder / "seal.key").touch(mode=0o600)
    check(place, seal_key=source.format(folder / "seal.key"))
    check(place, seal_key="env:NAME")
    folder.chmod(0o777)
    with pytest.raises(UsageError, match=f"the seal key must .* chmod go-w {folder}"):
        check(place, seal_key=source.format(folder / "seal.key"))


def test_a_folder_above_that_others_may_write_to(place: Path) -> None:
    """They could put another one in its place; in a sticky one, such as /tmp, they cannot."""
    above = place / "above"
    above.mkdir()
    (place / "model_store").rename(above / "model_store")
    (place / "model_store").symlink_to(above / "model_store")
    above.chmod(0o777)
    with pytest.raises(UsageError, match=f"the model store must .* chmod go-w {above}"):
        check(place)
    above.chmod(0o1777)
    check(place)
    (above / "model_store").chmod(0o1777)
    with pytest.raises(UsageError, match="the model store must be writable by its owner alone"):
        check(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_somebody_else(place: Path) -> None:
    """Its owner may write to it whenever they like."""
    os.chown(place / "model_store", 65534, -1)
    with pytest.raises(UsageError, match=r"the model store must belong to .* of user 65534"):
        check(place)


def test_tokens_that_others_may_read(tmp_path: Path) -> None:
    """On a file system that keeps no permissions, say."""
    key_file = tmp_path / "key_file.json"
    key_file.touch(mode=0o600)
    production.check_tokens(key_file)
    key_file.chmod(0o640)
    with pytest.raises(ServerError, match=r"readable by its owner alone .* mode 0640"):
        production.check_tokens(key_file)


def test_the_profiles_name_and_what_comes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`throughput` is a word of another command, and variables are named with it alone."""
    monkeypatch.setenv("LICENCE", "x")
    production.check_profile(None, ())
    production.check_profile("production", ("LICENCE",))
    for profile, keep, message in [
        ("throughput", (), "profile must be production.*when it is packed or registered"),
        (None, ("LICENCE",), "keep_env must come with --profile production"),
        ("production", ("NOT_SET",), "NOT_SET must be set"),
        ("production", ("PYTHONPATH",), "PYTHONPATH must not reach a worker"),
    ]:
        with pytest.raises(UsageError, match=message):
            production.check_profile(profile, keep)


def test_advice(tmp_path: Path) -> None:
    """What is no reason to refuse: no signatures, and root."""
    as_root = ["root" in line for line in production.advice(tmp_path)]
    assert as_root == ([True] if os.geteuid() == 0 else [])
    assert "--trust" in list(production.advice(None))[-1]


def test_the_environment_in_production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is needed, what is named and what marship tells; else all but what does harm."""
    for name in ("SECRET", "LICENCE", "LC_ALL", "LD_PRELOAD", "JAVA_TOOL_OPTIONS", "PYTHONPATH"):
        monkeypatch.setenv(name, "x")
    seen = environment.build(tmp_path, {"TOLD": "1", "NOT_TOLD": None}, ("LICENCE",))
    assert {"PATH", "LC_ALL", "LICENCE", "TOLD", "TMPDIR"} <= set(seen)
    hidden = {"SECRET", "LD_PRELOAD", "JAVA_TOOL_OPTIONS", "PYTHONPATH", "NOT_TOLD"}
    assert not hidden & set(seen)
    assert {"SECRET", "LICENCE"} <= set(everything := environment.build(tmp_path, {}, None))
    assert "PYTHONPATH" not in everything


def test_the_path_of_a_partys_key_reaches_its_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In production, too; as a path from the root, since a worker runs in another folder."""
    monkeypatch.setenv(environment.PARTY_KEY, "keys/party0.key")
    monkeypatch.chdir(tmp_path)
    seen = environment.build(tmp_path, {}, ())
    assert seen[environment.PARTY_KEY] == str(tmp_path / "keys" / "party0.key")
