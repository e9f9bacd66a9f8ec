"""TorchServe's settings are complete, safe, checked and resolved before anything starts."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from marship.errors import ServerError, UsageError
from marship.torchserve import config, properties, sockets

ANY = dict.fromkeys(config.LISTENERS, 0)


def resolve(source: Path, store: Path, **changes: Any) -> dict[str, str]:
    """Resolve with free ports."""
    given = {"home": store.parent, "model_store": store, "ports": ANY, "models": ()} | changes
    return config.resolve(source, **given)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model store whose path means something to a regular expression, and to TorchServe."""
    folder = tmp_path / "a.b (c), d"
    folder.mkdir()
    return folder


def test_the_packaged_settings_are_safe() -> None:
    """Loopback everywhere, tokens on, no downloads from elsewhere, sizes bounded."""
    values = properties.read(config.PACKAGED)
    for name in config.HTTP_ADDRESSES:
        assert values[name].startswith("http://127.0.0.1:")
    assert values["grpc_inference_address"] == values["grpc_management_address"] == "127.0.0.1"
    assert values["disable_token_authorization"] == "false"
    assert values["install_py_dep_per_model"] == "false"
    assert int(values["max_request_size"]) == int(values["max_response_size"]) == 16 << 20


def test_every_setting_gives_its_reason() -> None:
    """Each group of lines has a comment above it, and none stands without."""
    groups = config.PACKAGED.read_text().strip().split("\n\n")
    assert all(group.startswith("#") for group in groups)


def test_the_repository_has_one_config() -> None:
    """The file at the top is the packaged one, so they cannot drift apart."""
    top = Path(__file__).parents[3] / "config.properties"
    assert top.resolve() == config.PACKAGED.resolve()


def test_allowed_urls_match_files_of_the_store_alone(store: Path) -> None:
    """Whatever the folder is called, and with TorchServe's splitting at commas."""
    (pattern,) = resolve(config.PACKAGED, store)["allowed_urls"].split(",")
    assert re.fullmatch(pattern, f"file://{store}/x.mar")
    assert not re.fullmatch(pattern, f"file://{store}/../x.mar")
    assert not re.fullmatch(pattern, "file:///etc/x.mar")
    assert not re.fullmatch(pattern, f"file://{str(store).replace('.', 'x')}/x.mar")


def test_free_ports_differ(store: Path) -> None:
    """Five listeners, five ports."""
    values = resolve(config.PACKAGED, store)
    ports = {port for _, _, port in config.listeners(values)}
    assert len(ports) == len(config.LISTENERS)


def test_a_port_that_two_settings_name_is_refused(store: Path) -> None:
    """The second one finds it taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ports = ANY | {"inference_address": port, "management_address": port}
    with pytest.raises(ServerError, match=rf"port {port} of .*management_address"):
        resolve(config.PACKAGED, store, ports=ports)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("job_queue_sise=1", "got 'job_queue_sise'. Did you mean job_queue_size"),
        ("qwertz=1", "got 'qwertz'. Remove the line"),
        ("job_queue_size=many", "job_queue_size in .* must be a whole number"),
        ("enable_model_api=yes", "enable_model_api in .* must be true or false"),
        ("inference_address=127.0.0.1:8080", "inference_address in .* must be an address"),
        ("inference_address=http://127.0.0.1:99999", "inference_address in .* must be an addr"),
        ("metrics_mode=loud", "metrics_mode in .* must be one of prometheus"),
        ("token_expiration_min=soon", "token_expiration_min in .* must be a number of minutes"),
        ("model_store=$$NO_SUCH_VARIABLE$$/x", "NO_SUCH_VARIABLE must be set"),
    ],
)
def test_a_wrong_line_is_told(store: Path, tmp_path: Path, line: str, message: str) -> None:
    """The error names the setting and what it must be."""
    source = tmp_path / "config.properties"
    source.write_text(f"{config.PACKAGED.read_text()}\n{line}\n")
    with pytest.raises(UsageError, match=message):
        resolve(source, store, model_store=None if "model_store" in line else store)


def test_a_listener_without_a_setting_is_told(store: Path, tmp_path: Path) -> None:
    """TorchServe's own defaults would be taken else, which may be in use."""
    source = tmp_path / "config.properties"
    source.write_text("inference_address=http://127.0.0.1:8080\n")
    with pytest.raises(UsageError, match="must set management_address, metrics_address, grpc_"):
        resolve(source, store)


def test_models_to_load_must_be_in_the_store(store: Path) -> None:
    """Names with and without a model's name; `all` needs no file."""
    (store / "a.mar").touch()
    assert resolve(config.PACKAGED, store, models=("x=a.mar",))["load_models"] == "x=a.mar"
    assert resolve(config.PACKAGED, store, models=("all",))["load_models"] == "all"
    for wrong in ("b.mar", "x=../a.mar", "/etc/a.mar"):
        with pytest.raises(UsageError, match="must lie in the model store"):
            resolve(config.PACKAGED, store, models=(wrong,))


def test_a_socket_takes_the_place_of_a_port(store: Path, tmp_path: Path) -> None:
    """It is no listener with a port, its URL holds its path, and too long a path is told."""
    source = tmp_path / "config.properties"
    text = config.PACKAGED.read_text()
    source.write_text(text.replace("http://127.0.0.1:8080", "unix:$$MARSHIP_HOME$$/i.sock"))
    values = resolve(source, store)
    assert len({name for name, _, _ in config.listeners(values)}) == len(config.LISTENERS) - 1
    url = config.address_url(values, "inference_address")
    assert sockets.path_of(url) == f"{store.parent}/i.sock"
    assert sockets.without_path(f"{url}/ping?a=%2F") == "http://localhost/ping?a=%2F"
    assert sockets.path_of("http://127.0.0.1:8080") is None
    with pytest.raises(UsageError, match=r"must be a path of 107 bytes at most.*--home"):
        resolve(source, store, home=store / ("long" * 30))
