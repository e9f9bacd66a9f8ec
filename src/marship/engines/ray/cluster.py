"""Connecting to a cluster, and what Ray Serve is asked there. All of it blocks.

A process is connected to one cluster at a time: Ray keeps the connection in the process.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marship import console
from marship.engines.ray import gcs, keeper, problems
from marship.engines.ray.archives import ArchiveSource
from marship.engines.ray.table import Table
from marship.engines.trials import TrialState
from marship.errors import (
    LoadError,
    NotFoundError,
    NotRunningError,
    UsageError,
)
from marship.version import VERSION

if TYPE_CHECKING:
    from marship.engines.ray.hosted import HostedVersion
    from marship.engines.ray.plan import RunPlan

LOOPBACK = "127.0.0.1"
FRONT = "marship"
"""The application that takes requests; those of versions begin with it, too."""
_PROBE_S, _CALL_S = 120.0, 60.0
_deploying = threading.Lock()
"""Ray keeps for the whole process which modules it pickles just then."""
_FRONT_CPUS = 0.0  # on every node, however full


def environment(token_file: Path | None) -> dict[str, str]:
    """Variables for every process of Ray: tokens always, and no reports to its makers."""
    found = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    return found if token_file is None else {**found, "RAY_AUTH_TOKEN_PATH": str(token_file)}


def connect(address: str, token_file: Path | None) -> None:
    """Connect this process.

    Args:
        address: HOST:PORT of the cluster, of which this machine must be a node.
        token_file: The cluster's own token; None is where Ray looks for it.

    Raises:
        UsageError: Ray is not installed, or the address is none.
        NotRunningError: No cluster is there, or another server.
        ServerError: It refuses: another version, or another token.
    """
    check_installed()
    gcs.check_listens(address)
    os.environ.update(environment(token_file))
    import ray
    from ray._private import auto_init_hook, ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    from ray.serve import context

    # threads of handles outlive the connection, and would start a cluster of their own here
    auto_init_hook.enable_auto_connect = False
    Config.initialize("")  # another program may have imported Ray before, without tokens
    ray_constants.ENABLE_RAY_CLUSTER = not address.startswith(f"{LOOPBACK}:")  # see `head`
    if ray.is_initialized():
        if ray.get_runtime_context().gcs_address == address:
            return
        ray.shutdown()
    AuthenticationTokenLoader.instance().reset_cache()  # another cluster has another token,
    forget: Any = context._set_global_client  # and another controller, be it by the same job number
    forget(None)
    problems.keep_output()
    try:
        ray.init(
            address,
            namespace=keeper.NAMESPACE,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray's own errors are of many kinds
        raise problems.refused(address, error) from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def check_installed() -> None:
    """Check that Ray can be imported.

    Raises:
        UsageError: It cannot.
    """
    from importlib.util import find_spec

    # `ray.serve` would import Ray, which reads its variables then
    if find_spec("ray") is None or find_spec("starlette") is None:
        raise UsageError(
            "Ray must be installed for --engine ray, got none. Run: pip install 'marship[ray]'"
        )


def check_data_installed() -> None:
    """Check that Ray Data can be imported.

    Raises:
        UsageError: It cannot.
    """
    from importlib.util import find_spec

    check_installed()
    if find_spec("pyarrow") is None or find_spec("pandas") is None:
        raise UsageError(
            "Ray Data must be installed to predict files on a cluster, got Ray alone. Run: pip "
            "install 'marship[ray]'"
        )


def nodes() -> list[dict[str, Any]]:
    """What Ray tells of each node that is alive."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def _deployment(kind: type) -> Any:  # noqa: ANN401  Serve's annotation is a decorator's
    from ray import serve

    return serve.deployment(kind)


def probe(source: ArchiveSource | None) -> None:
    """Ask every node whether it has the packages, and can place an archive.

    Raises:
        LoadError: One has not; the message says which and why.
        MarshipError: One cannot place the archive.
    """
    from marship.engines.ray import node

    on_every_node(node.probe, source)


def on_every_node(task: Callable[..., dict[str, str]], *given: object) -> None:
    """Run a task on every node, which returns `node.facts`, perhaps with an error of ours.

    Raises:
        LoadError: One has not the packages; the message says which and why.
        MarshipError: The error of one.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for found in nodes():
        strategy = NodeAffinitySchedulingStrategy(found["NodeID"], soft=False)
        remote = ray.remote(task).options(num_cpus=0, scheduling_strategy=strategy, max_retries=1)
        asked[found["NodeID"]] = found["NodeManagerAddress"], remote.remote(*given)
    for node, (address, answer) in asked.items():
        _check_node(node, address, answer)


def _check_node(node: str, address: str, answer: Any) -> None:  # noqa: ANN401  Ray's reference
    import ray

    try:
        facts = ray.get(answer, timeout=_PROBE_S)
    except ray.exceptions.GetTimeoutError as error:
        raise LoadError(
            f"node {address} must answer within {_PROBE_S:g} s, got nothing. See: ray status"
        ) from error
    except ray.exceptions.RayError as error:
        if node not in {found["NodeID"] for found in nodes()}:
            return  # it died, of which Ray knows some seconds later
        cause = problems.found(str(error), f"marship on node {address}")
        raise LoadError(f"node {address}: {cause}") from error
    if "code" in facts:
        raise problems.of_code(facts["code"], facts["message"])
    if facts["marship"] != VERSION:
        raise LoadError(
            f"node {address} must have marship {VERSION} as this environment, got "
            f"{facts['marship']}. Install the same there."
        )


def check_resources(plan: "RunPlan", what: str, replicas: int) -> None:
    """Check that there is room for so many more replicas.

    Raises:
        LoadError: None has what it needs.
    """
    import ray

    held = [found["Resources"] for found in nodes()]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    for name, one in (("GPU", plan.gpus), ("CPU", plan.cpus)):
        most = max((each.get(name, 0.0) for each in held), default=0.0)
        if one > most:
            raise LoadError(
                f"{what} must have {one:g} {name} for a replica, got {most:g} on the largest "
                "node. Add a node that has it, or package the model for another device."
            )
        if one * replicas > free.get(name, 0.0):
            raise LoadError(
                f"{what} must have {one * replicas:g} {name} for {replicas} more replicas, got "
                f"{free.get(name, 0.0):g} free. Add a node, or scale another model down."
            )


def start_front(key: str | None, port: int, host: str) -> None:
    """Start Serve's proxies, and the front on every node."""
    from ray import serve

    with console.muted(logging.WARNING):
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 75},
        )
        _run_front(table() if FRONT in details() else Table(), key)


def _run_front(table: Table, key: str | None) -> None:
    from ray import serve

    from marship.engines.ray.front import Front

    with _deploying:
        front = _deployment(Front).options(
            num_replicas=max(2, len(nodes())),  # where one is configured anew another goes on
            max_ongoing_requests=1000,
            user_config=table.to_json(),
            health_check_period_s=1.0,
            health_check_timeout_s=5.0,
            graceful_shutdown_timeout_s=30.0,
            ray_actor_options={"num_cpus": _FRONT_CPUS},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        front._version = VERSION
        serve.run(front.bind(key), name=FRONT, route_prefix="/")


def table() -> Table:
    """The models that the front knows.

    Raises:
        NotRunningError: There is no front.
    """
    front = details().get(FRONT)
    if front is None:
        raise NotRunningError(
            "the cluster must run marship's front, got none. Start it with: marship serve "
            "--engine ray"
        )
    (deployment,) = front["deployments"].values()
    return Table.from_json(deployment["deployment_config"].get("user_config"))


def write(changed: Table) -> None:
    """Have every front take a table, and return when all have.

    Raises:
        LoadError: One cannot start.
    """
    import ray

    facts = ray.get(keeper.running().facts.remote(), timeout=_CALL_S)
    with console.muted(logging.WARNING):
        try:
            _run_front(changed, facts["key"])
        except RuntimeError as error:  # Serve's
            raise problems.found(str(error), "the front") from error


def details() -> Mapping[str, Any]:
    """Serve's applications by name, with their deployments and replicas.

    Raises:
        NotRunningError: Serve does not run.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    found: Mapping[str, Any] = client.get_serve_details()["applications"]
    return found


def deploy(app: str, version: "HostedVersion", plan: "RunPlan") -> None:
    """Start a version's application, or give it another number of replicas; does not wait."""
    import ray
    from ray import serve

    from marship.engines.ray import noted
    from marship.engines.ray.replica import Replica

    ray.get(keeper.running().note.remote(app, noted.to_json(version, plan)), timeout=_CALL_S)
    with console.muted(logging.WARNING), _deploying:
        deployment = _deployment(Replica).options(**plan.options())
        deployment._version = app
        serve.run_many(
            [serve.RunTarget(deployment.bind(version), name=app, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def delete(app: str) -> None:
    """End an application: its replicas finish what they have."""
    from ray import serve

    with console.muted(logging.WARNING):
        serve.delete(app)
    keeper.running().forget.remote(app)


def broadcast(app: str, method: str, *given: Any) -> list[Any]:  # noqa: ANN401
    """What each replica of an application returns of a method; empty if there are none."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    with console.muted(logging.WARNING):
        try:
            handle: Any = serve.get_app_handle(app)
        except RayServeException:
            return []  # nor is there the application
        if not handle.is_initialized:  # a client has no loop, whatever its environment says of Ray
            handle._init(_run_router_in_separate_loop=True)
        try:
            return list(handle.broadcast(method, *given).results(timeout_s=_CALL_S))
        finally:
            handle.shutdown()  # its thread would report to the cluster when we have left it


def trial_states() -> list[TrialState]:
    """The trials that fronts take part in; one trial several times."""
    told = broadcast(FRONT, "trials")
    return [TrialState.from_json(one) for states in told for one in states]


def port() -> int:
    """The port of each node's proxy."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    return int(client.http_config.port)


def deployed(app: str) -> "tuple[HostedVersion, RunPlan]":
    """What an application was deployed with.

    Raises:
        NotFoundError: There is no such application.
    """
    import ray

    from marship.engines.ray import noted

    found = ray.get(keeper.running().noted.remote(app), timeout=_CALL_S)
    if found is None:
        raise NotFoundError(f"{app} must be an application of marship, got none of that name.")
    return noted.from_json(found)
