"""TorchServe's settings: located, validated, and resolved for one server."""

import difflib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from marship.engines.engine import ServerConfig
from marship.engines.store import holds
from marship.engines.torchserve import properties
from marship.errors import ServerError, UsageError
from marship.exchange import sockets

CONFIG_FILE = "config.properties"
PACKAGED = Path(__file__).with_name(CONFIG_FILE)
METRICS_FILE = PACKAGED.with_name("metrics.yaml")

DIRECT_ADDRESS = "direct_address"
"""Ours, not TorchServe's: where workers respond themselves."""
GRPC_ADDRESS = "grpc_address"
"""Ours, too: where a gateway serves KServe v2 over gRPC, if it is named."""
PROMETHEUS_ADDRESS = "prometheus_address"
"""Ours, too: one page for Prometheus of all workers and TorchServe, beside the direct address."""
HTTP_ADDRESSES = (
    *("inference_address", "management_address", "metrics_address"),
    *(DIRECT_ADDRESS, PROMETHEUS_ADDRESS),
)
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
DEFAULT_DIRECT, DEFAULT_GRPC = "http://127.0.0.1:8079", "127.0.0.1:8001"
DEFAULT_PROMETHEUS = "http://127.0.0.1:8083"
_OWN = (DIRECT_ADDRESS, PROMETHEUS_ADDRESS)
DEFAULT_QUEUE_SIZE, DEFAULT_MAX_REQUEST_BYTES = 100, 6_553_500
LISTENERS = (*HTTP_ADDRESSES, GRPC_ADDRESS, *GRPC_PORTS)
"""The settings with a port, in the order in which ports are checked."""

_INTEGER_NAMES = """
    default_response_timeout default_startup_timeout default_workers_per_model
    grpc_inference_max_connection_age_grace_ms grpc_inference_max_connection_age_ms
    grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms
    initial_distribution_port initial_worker_port io_ratio job_queue_size max_request_size
    max_response_size metric_time_interval netty_client_threads number_of_gpu
    number_of_netty_threads unregister_model_timeout
"""
_SWITCH_NAMES = """
    async_logging cpu_launcher_enable debug decode_input_request disable_system_metrics
    disable_token_authorization enable_envvars_config enable_grpc_ssl enable_metrics_api
    enable_model_api install_py_dep_per_model ipex_enable ipex_gpu_enable
    limit_max_image_pixels model_metrics_auto_detect prefer_direct_buffer
    ts_open_inference_protocol use_env_allowed_urls use_native_io
"""
_TEXT_NAMES = """
    allowed_urls blacklist_env_vars certificate_file cors_allowed_headers
    cors_allowed_methods cors_allowed_origin cpp_log_config cpu_launcher_args
    default_service_handler grpc_inference_address grpc_management_address keystore
    keystore_pass keystore_type load_models metrics_config metrics_mode model_snapshot
    model_store models private_key_file service_envelope system_metrics_cmd
    token_expiration_min ts_header_key_sequence_end ts_header_key_sequence_id
    ts_header_key_sequence_start vmargs workflow_store
"""
_INTEGERS = {*_INTEGER_NAMES.split(), *GRPC_PORTS}
_SWITCHES = set(_SWITCH_NAMES.split())
_KNOWN = _INTEGERS | _SWITCHES | {*_TEXT_NAMES.split(), *HTTP_ADDRESSES, GRPC_ADDRESS}
_OPEN_INFERENCE = "ts_open_inference_protocol"
_FORMS = {
    "token_expiration_min": (r"\d+(\.\d+)?", "be a number of minutes"),
    GRPC_ADDRESS: (r"[^:/\s]+:\d{1,5}", "be a host and a port like 127.0.0.1:8001"),
}
_NAMES = {"metrics_mode": ("prometheus", "log", "legacy")}
_VARIABLE = re.compile(r"\$\$([^$]+)\$\$")
_ARCHIVE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.mar"
_PLAIN_FOLDER = re.compile(r"/[\w/ .,@+=~:()-]*")
_HIGHEST_PORT = 65534  # TorchServe rejects 65535


def locate(config: Path | None) -> Path:
    """The settings file: the given one, else the current folder's, else the packaged one."""
    if config is not None:
        return config
    here = Path(CONFIG_FILE)
    return here if here.is_file() else PACKAGED


def server_config(source: Path) -> ServerConfig:
    """The settings in a file that clients and proxies depend on.

    Raises:
        UsageError: It cannot be read.
    """
    values = properties.read(source)
    return ServerConfig(
        inference_address=values.get("inference_address", ""),
        direct_address=values.get(DIRECT_ADDRESS),
        queue_size=int(values.get("job_queue_size", DEFAULT_QUEUE_SIZE)),
        max_request_bytes=int(values.get("max_request_size", DEFAULT_MAX_REQUEST_BYTES)),
        checks_tokens=values.get("disable_token_authorization") != "true",
        model_store=values.get("model_store"),
    )


def resolve(  # noqa: PLR0913  keyword-only
    source: Path,
    *,
    home: Path,
    model_store: Path | None,
    ports: Mapping[str, int | None],
    models: Sequence[str],
    vault: Path | None = None,
    direct: bool | None = None,
) -> dict[str, str]:
    """Read, validate and complete the settings of one server.

    Args:
        source: The properties file.
        home: The server's home folder, absolute.
        model_store: Overrides the file's, if given.
        ports: By the name in `LISTENERS`; None is the file's, 0 is any free port.
        models: Archives to load at startup; overrides the file's if not empty.
        vault: The folder that TorchServe may read in place of the model store.
        direct: Whether workers respond themselves; None leaves it to the file, and without a
            line there to whether TorchServe's inference address is plain HTTP.

    Raises:
        UsageError: A name is unknown, a value is invalid, or a folder or archive is missing.
        ServerError: A port is in use.
    """
    values = checked(
        source, home=home, model_store=model_store, ports=ports, vault=vault, direct=direct
    )
    store = Path(values["model_store"])
    if not store.is_dir():
        raise UsageError(
            f"the model store must be a folder, got {store}. "
            "Make it, or name another with --model-store."
        )
    if models:
        values["load_models"] = ",".join(models)
    _check_models(values.get("load_models", ""), store)
    _choose_ports(values, ports)
    return values


def checked(  # noqa: PLR0913  keyword-only
    source: Path,
    *,
    home: Path,
    ports: Mapping[str, int | None],
    model_store: Path | None = None,
    vault: Path | None = None,
    direct: bool | None = None,
) -> dict[str, str]:
    """The settings of one server as `resolve` has them, before folders and ports are looked at.

    Raises:
        UsageError: A name is unknown, or a value is invalid.
    """
    values = properties.read(source)
    if ports.get(GRPC_ADDRESS) is not None:
        values.setdefault(GRPC_ADDRESS, DEFAULT_GRPC)
    _check(values, source)
    _set_own(values, direct)
    if GRPC_ADDRESS in values:
        _check_grpc(values)
    if model_store is not None:
        values["model_store"] = str(model_store)
    _fill(values, {"model_store": values.get("model_store", "model_store")}, os.environ, source)
    store = Path(values["model_store"]).absolute()
    values["model_store"] = str(store)
    known = {
        "MARSHIP_ARCHIVES": allowed_urls(vault or store),
        "MARSHIP_HOME": str(home),
        "MARSHIP_METRICS": str(METRICS_FILE),
    }
    _fill(values, values, {**os.environ, **known}, source)
    _check_sockets(values, source)
    return values


def address_url(values: Mapping[str, str], name: str) -> str:
    """The address that clients call, without a trailing slash."""
    value = values[name]
    return sockets.url(value) if _is_socket(value) else value.rstrip("/")


def allowed_urls(store: Path) -> str:
    """The packaged `allowed_urls` for a folder: only URLs of the archives in it.

    TorchServe matches case-insensitively, which the group disables, splits the setting at commas,
    and decodes a URL after matching it: `%2e%2e%2f` is a path traversal. So allowed characters of
    a name are listed. A folder whose own path would be decoded, or be cut at `?` or `#`, gets a
    pattern that matches nothing; archives can still be registered by name.
    """
    folder = re.escape(str(store)).replace(",", r"\x2c")
    if not _PLAIN_FOLDER.fullmatch(str(store)):
        folder = "(?!)"
    return f"(?-i:file://{folder}/{_ARCHIVE_NAME})"


def _check(values: Mapping[str, str], source: Path) -> None:
    for name, value in values.items():
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Remove the line."
            raise UsageError(f"{source} must hold settings of TorchServe, got {name!r}. {hint}")
        if rule := _broken_rule(name, value):
            raise UsageError(f"{name} in {source} must {rule}, got {value!r}.")
    if values.get(_OPEN_INFERENCE) == "true":
        raise UsageError(
            f"{_OPEN_INFERENCE} in {source} must be false: one bad gRPC request of that protocol "
            "crashes a worker. Remove the line; /predictions/MODEL takes the same requests, KServe "
            "v2 in JSON or with raw tensors, over HTTP."
        )
    if missing := [name for name in LISTENERS if name not in {*values, *_OWN, GRPC_ADDRESS}]:
        raise UsageError(f"{source} must set {', '.join(missing)}, got a file without.")


def _set_own(values: dict[str, str], direct: bool | None) -> None:
    """Complete our own addresses."""
    if direct is False:
        values.pop(DIRECT_ADDRESS, None)
    elif direct or values["inference_address"].startswith("http:"):
        # beside a unix socket or TLS a plain port is opened only where it was named
        values.setdefault(DIRECT_ADDRESS, DEFAULT_DIRECT)
    if DIRECT_ADDRESS in values:
        values.setdefault(PROMETHEUS_ADDRESS, DEFAULT_PROMETHEUS)
    else:
        values.pop(PROMETHEUS_ADDRESS, None)


def _check_grpc(values: Mapping[str, str]) -> None:
    """Check that the gateway has what it asks, and what it is made of."""
    if DIRECT_ADDRESS not in values:
        raise UsageError(
            f"{GRPC_ADDRESS} must come with {DIRECT_ADDRESS}, whose workers respond, got it alone. "
            "Name a --direct-port, or leave out --no-direct."
        )
    if find_spec("grpc") is None:
        raise UsageError(
            f"{GRPC_ADDRESS} must have the package grpcio, got an installation without. "
            "Install it: pip install 'marship[grpc]'"
        )


def _broken_rule(name: str, value: str) -> str | None:
    if name in _INTEGERS and not re.fullmatch(r"\d{1,18}", value):
        return "be a whole number of 0 or more"
    if name in _SWITCHES and value not in ("true", "false"):
        return "be true or false"
    is_address = _is_address(value) and (name not in _OWN or value.startswith("http:"))
    if name in HTTP_ADDRESSES and not is_address:
        return "be an address like http://127.0.0.1:8080 or unix:/folder/socket"
    form, rule = _FORMS.get(name, (".*", ""))
    if not re.fullmatch(form, value):
        return rule
    if name in _NAMES and value not in _NAMES[name]:
        return f"be one of {', '.join(_NAMES[name])}"
    return None


def _is_socket(value: str) -> bool:
    return value.startswith(sockets.PREFIX)


def _is_address(value: str) -> bool:
    if _is_socket(value):
        return value.removeprefix(sockets.PREFIX).startswith(("/", "$$"))
    match = re.fullmatch(r"https?://[^:/]+:(\d{1,5})/?", value)
    return match is not None and int(match[1]) <= _HIGHEST_PORT


def _check_models(load_models: str, store: Path) -> None:
    if load_models.strip().lower() == "all":
        return
    for entry in filter(None, load_models.split(",")):
        name = entry.rpartition("=")[2].strip()
        if "/" in name or not (store / name).exists():
            raise UsageError(f"{name} must lie in the model store {store}, which {holds(store)}.")


def _fill(
    values: dict[str, str], some: Mapping[str, str], variables: Mapping[str, str], source: Path
) -> None:
    """Expand `$$NAME$$` in some of the values, as TorchServe does."""
    for key, value in some.items():
        if missing := [name for name in _VARIABLE.findall(value) if name not in variables]:
            raise UsageError(f"{missing[0]} must be set, as {key} in {source} asks for it.")
        values[key] = _VARIABLE.sub(lambda match: variables[match[1]], value)


def _choose_ports(values: dict[str, str], ports: Mapping[str, int | None]) -> None:
    """Choose the ports, bound at the same time so that free ones are distinct.

    Raises:
        ServerError: A port is in use.
        UsageError: A port is out of range.
    """
    with ExitStack() as held:
        for name, host, port in listeners(values):
            wanted = ports.get(name)
            bound = _bind(host, port if wanted is None else wanted, name, held)
            _set_port(values, name, bound)


def _listener(values: Mapping[str, str], name: str) -> tuple[str, int]:
    if name in GRPC_PORTS:
        host = values.get(name.replace("_port", "_address"), "127.0.0.1")
        return host, int(values[name])
    parts = _parts(values[name])
    return parts.hostname or "", parts.port or 0


def _parts(address: str) -> SplitResult:
    """An address's parts, whether it has a scheme or is a host and a port."""
    return urlsplit(address if "://" in address else f"//{address}")


def _set_port(values: dict[str, str], name: str, port: int) -> None:
    if name in GRPC_PORTS:
        values[name] = str(port)
        return
    parts = _parts(values[name])
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    values[name] = f"{scheme}{parts.hostname}:{port}"


def _bind(host: str, port: int, name: str, held: ExitStack) -> int:
    flag = "--" + name.replace("_address", "_port").replace("_", "-")
    if not 0 <= port <= _HIGHEST_PORT:
        raise UsageError(
            f"the port of {name} must be from 0 to {_HIGHEST_PORT}, got {port}. "
            f"Choose one with {flag}; 0 takes any free one."
        )
    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        probe.listen()  # otherwise a second socket may bind the same port
    except OSError as error:
        raise ServerError(
            f"port {port} of {host} ({name}) must be free, got: {error.strerror}. "
            f"Choose another with {flag}, or any free one with {flag} 0."
        ) from error
    return int(probe.getsockname()[1])


def listeners(values: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    """Name, host and port of every listener, except unix sockets."""
    for name in [name for name in LISTENERS if name in values]:
        if not _is_socket(values[name]):
            yield (name, *_listener(values, name))


def _check_sockets(values: Mapping[str, str], source: Path) -> None:
    for name in [name for name in HTTP_ADDRESSES if name in values]:
        if not _is_socket(values[name]):
            continue
        path = values[name].removeprefix(sockets.PREFIX)
        if sockets.is_too_long(path):
            raise UsageError(
                f"{name} in {source} must be a path of {sockets.LONGEST_PATH} bytes at most, "
                f"got {path}. Choose a shorter home with --home."
            )
