"""TorchServe's settings are complete, safe, checked and resolved before anything starts."""

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marship.engines.engine import ServerConfig
from marship.engines.torchserve import config, environment, properties
from marship.errors import ServerError, UsageError
from marship.exchange import sockets

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
    assert config.GRPC_ADDRESS not in values  # off unless it is named
    for name in config.HTTP_ADDRESSES:
        assert values[name].startswith("http://127.0.0.1:")
    assert values["grpc_inference_address"] == values["grpc_management_address"] == "127.0.0.1"
    assert values["disable_token_authorization"] == "false"
    assert values["install_py_dep_per_model"] == "false"
    assert int(values["max_request_size"]) == int(values["max_response_size"]) == 16 << 20


@pytest.mark.parametrize(
    ("lines", "direct", "wanted"),
    [
        ("", None, "http://127.0.0.1:8079"),
        ("", False, None),
        ("direct_address=http://127.0.0.1:8070", None, "http://127.0.0.1:8070"),
        ("direct_address=http://127.0.0.1:8070", False, None),
        ("inference_address=unix:/tmp/marship-no-such/s", None, None),
        ("inference_address=unix:/tmp/marship-no-such/s", True, "http://127.0.0.1:8079"),
        ("inference_address=https://127.0.0.1:8443", None, None),
    ],
)
def test_workers_respond_themselves_unless_that_opens_a_port_nobody_named(
    store: Path, tmp_path: Path, lines: str, direct: bool | None, wanted: str | None
) -> None:
    """Beside a unix socket or TLS a plain port is opened only by a flag or a line."""
    packaged = config.PACKAGED.read_text().splitlines()
    kept = [line for line in packaged if not line.startswith("direct_address")]
    source = tmp_path / "config.properties"
    source.write_text("\n".join([*kept, lines, ""]))
    values = config.resolve(
        source, home=tmp_path, model_store=store, ports={}, models=[], direct=direct
    )
    assert values.get(config.DIRECT_ADDRESS) == wanted


@pytest.mark.parametrize("value", ["false", "true"])
def test_the_open_inference_protocol_is_refused(
    store: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad request of it ends a worker: neither the file nor the environment switches it on."""
    source = tmp_path / "config.properties"
    source.write_text(f"{config.PACKAGED.read_text()}\nts_open_inference_protocol={value}\n")
    if value == "false":
        assert resolve(source, store)["ts_open_inference_protocol"] == value
    else:
        with pytest.raises(UsageError, match="KServe v2 in JSON or with raw tensors, over HTTP"):
            resolve(source, store)
    monkeypatch.setenv("TS_OPEN_INFERENCE_PROTOCOL", "oip")
    assert "TS_OPEN_INFERENCE_PROTOCOL" not in environment.build(tmp_path, {}, None)
    with pytest.raises(UsageError, match="must not reach a worker"):
        environment.check_named(["TS_OPEN_INFERENCE_PROTOCOL"])


def write(folder: Path, *lines: str) -> Path:
    """The packaged settings with further lines."""
    source = folder / "config.properties"
    source.write_text("\n".join([config.PACKAGED.read_text(), *lines]))
    return source


def test_grpc_has_an_address_of_its_own(store: Path, tmp_path: Path) -> None:
    """By a flag or a line; the port is chosen as the others are, and none is named by default."""
    assert config.GRPC_ADDRESS not in resolve(
        config.PACKAGED, store, ports=ANY | {config.GRPC_ADDRESS: None}
    )
    host, _, port = resolve(config.PACKAGED, store)[config.GRPC_ADDRESS].partition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    source = write(tmp_path, "grpc_address=localhost:0")
    assert re.fullmatch(r"localhost:[1-9]\d+", resolve(source, store)[config.GRPC_ADDRESS])


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:8001", "127.0.0.1", "unix:/s", ":8001", "a b:1", "a:123456"]
)
def test_a_grpc_address_is_a_host_and_a_port(store: Path, tmp_path: Path, value: str) -> None:
    """As clients of gRPC take it; anything else is refused."""
    source = write(tmp_path, f"grpc_address={value}")
    with pytest.raises(UsageError, match=r"grpc_address .*must be a host and a port"):
        resolve(source, store)


def test_grpc_needs_the_direct_address(store: Path) -> None:
    """The gateway calls it: without a direct address there is nothing to serve."""
    with pytest.raises(UsageError, match="grpc_address must come with direct_address"):
        resolve(config.PACKAGED, store, direct=False)


def test_grpc_needs_its_package(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, before anything starts."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(UsageError, match=r"pip install 'marship\[grpc\]'"):
        resolve(config.PACKAGED, store)


def test_every_setting_gives_its_reason() -> None:
    """Each group of lines has a comment above it, and none stands without."""
    groups = config.PACKAGED.read_text().strip().split("\n\n")
    assert all(group.startswith("#") for group in groups)


def test_the_repository_has_one_config() -> None:
    """The file at the top is the packaged one, so they cannot drift apart."""
    top = Path(__file__).parents[4] / "config.properties"
    assert top.resolve() == config.PACKAGED.resolve()


def is_allowed(pattern: str, url: str) -> bool:
    """Whether TorchServe would take it: without regard to case, one pattern between commas."""
    return any(re.fullmatch(part, url, re.IGNORECASE) for part in pattern.split(","))


def read_by_java(url: str) -> str:
    """The path that java.net.URL opens: cut at ? and #, decoded once."""
    return os.path.normpath(unquote(re.split("[?#]", url.removeprefix("file://"))[0]))


def test_allowed_urls_match_files_of_the_store_alone(store: Path) -> None:
    """Whatever the folder is called, and with TorchServe's splitting at commas."""
    pattern = resolve(config.PACKAGED, store)["allowed_urls"]
    assert is_allowed(pattern, f"file://{store}/x-1.0_b.mar")
    for url in (
        f"file://{store}/../x.mar",
        f"file://{store}/%2e%2e%2fx.mar",
        f"file://{store}/%252e%252e%252fx.mar",
        f"file://{store}/..%5cx.mar",
        f"file://{store}/..\\x.mar",
        f"file://{store}/..",
        f"file://{store}/.mar",
        f"file://{store}/x.mar?/../y.mar",
        f"file://{store}/x.mar#y.mar",
        f"file://{store}/x.mar\n",
        f"file://{store}/\uff0e\uff0e\uff0fx.mar",
        f"file://{str(store).upper()}/x.mar",
        f"FILE://{store}/x.mar",
        f"file://localhost{store}/x.mar",
        f"https://{store}/x.mar",
        f"jar:file://{store}/x.mar",
        "file:///etc/x.mar",
        f"file://{str(store).replace('.', 'x')}/x.mar",
    ):
        assert not is_allowed(pattern, url), url


PIECES = [
    "..",
    "%2e",
    "%2E",
    "%2f",
    "%5c",
    "%25",
    "/",
    "\\",
    "x",
    ".mar",
    "?",
    "#",
    "\n",
    "é",
    "%00",
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))).map("".join))
def test_what_is_allowed_lies_in_the_store(name: str) -> None:
    """However it is put together: the file that Java opens is a direct child of the folder."""
    pattern = config.allowed_urls(Path("/srv/models"))
    url = f"file:///srv/models/{name}"
    if is_allowed(pattern, url):
        assert Path(read_by_java(url)) == Path("/srv/models") / name
        assert name.endswith(".mar")
    assert is_allowed(pattern, "file:///srv/models/a..b.mar")


@pytest.mark.parametrize(
    "folder", ["/srv/a#b", "/srv/a?b", "/srv/%2e%2e", "/srv/a\\b", "/srv/a\nb"]
)
def test_a_folder_that_java_would_read_otherwise_has_no_url(folder: str) -> None:
    """Its archives are registered by their names."""
    assert not is_allowed(config.allowed_urls(Path(folder)), f"file://{folder}/x.mar")


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
def test_a_wrong_line_is_reported(store: Path, tmp_path: Path, line: str, message: str) -> None:
    """The error names the setting and what it must be."""
    source = tmp_path / "config.properties"
    source.write_text(f"{config.PACKAGED.read_text()}\n{line}\n")
    with pytest.raises(UsageError, match=message):
        resolve(source, store, model_store=None if "model_store" in line else store)


@pytest.mark.parametrize("port", [-5, 65535, 99999, 10**20])
@pytest.mark.parametrize("name", ["inference_address", "grpc_inference_port"])
def test_a_port_out_of_range_is_reported(store: Path, name: str, port: int) -> None:
    """With the flag that chooses another."""
    with pytest.raises(UsageError, match=rf"{name} must be from 0 to 65534, got {port}.*--"):
        resolve(config.PACKAGED, store, ports={name: port})


def test_a_listener_without_a_setting_is_reported(store: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", ServerConfig("", None, 100, 6_553_500, checks_tokens=True, model_store=None)),
        (
            (
                "inference_address=http://127.0.0.1:1\ndirect_address=http://127.0.0.1:2\n"
                "job_queue_size=7\nmax_request_size=9\ndisable_token_authorization=true\n"
                "model_store=store\n"
            ),
            ServerConfig(
                *("http://127.0.0.1:1", "http://127.0.0.1:2", 7, 9),
                checks_tokens=False,
                model_store="store",
            ),
        ),
    ],
)
def test_clients_see_the_settings_of_a_file_or_torchserves_defaults(
    lines: str, expected: ServerConfig, tmp_path: Path
) -> None:
    """The engine interface names them; only here they have TorchServe's names."""
    file = tmp_path / "config.properties"
    file.write_text(lines)
    assert config.server_config(file) == expected
    addresses = [found for found in (expected.direct_address, expected.inference_address) if found]
    assert config.server_config(file).prediction_addresses == addresses
