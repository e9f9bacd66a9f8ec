"""A version's deployment: batches, limits, resources and autoscaling, from its archive."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marship.errors import PackageError

QUEUE = 1000
"""Requests that wait for one version, above which clients get 503."""
RESPONSE_TIMEOUT_S, STARTUP_TIMEOUT_S = 120.0, 120.0
MOST_BYTES = 1 << 24
"""Of requests and responses."""
MESSAGE_BYTES = MOST_BYTES + (1 << 20)
"""Of what a front and a replica send each other: headers are around a body."""

UPSCALE_S, DOWNSCALE_S, LOOK_BACK_S, METRICS_S = 2.0, 60.0, 4.0, 1.0
"""Ray waits 30 s and 600 s as shipped: too long for a burst, and for a bill."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 1.0, 5.0
"""How soon a lost node's replicas are started elsewhere; Ray's own are 10 and 30 s."""
GRACE_S = 30.0
CPUS_A_THREAD = 0.5
"""Of the cores that Ray counts: during a rollout the old version and the new one have room."""
_ACCELERATED = {"cuda", "tensorrt", "migraphx", "rocm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How a version runs.

    Attributes:
        batch_size: Maximum requests in one batch.
        timeout_s: How long a batch may take.
        startup_s: How long a worker may load.
        minimum: The fewest replicas.
        maximum: The most replicas; between them Ray scales by ongoing requests.
        cpus: Cores of one replica.
        gpus: Of one replica, perhaps a part of one.
    """

    batch_size: int
    timeout_s: float
    startup_s: float
    minimum: int
    maximum: int
    cpus: float
    gpus: float

    @classmethod
    def of(
        cls, config: Mapping[str, Any], *, workers: int | None, batch_size: int | None
    ) -> "RunPlan":
        """By an archive's model-config.yaml and what a client asks for.

        Raises:
            PackageError: A setting has no meaning.
        """
        section = config.get("marship") or {}
        minimum = workers or _whole(config, "minWorkers", 1)
        providers = section.get("providers") or ["cpu"]
        wants_gpu = config.get("deviceType") == "gpu" or bool(_ACCELERATED & set(providers))
        return cls(
            batch_size=batch_size or _whole(config, "batchSize", 1),
            timeout_s=float(_whole(config, "responseTimeout", int(RESPONSE_TIMEOUT_S))),
            startup_s=float(_whole(config, "startupTimeout", int(STARTUP_TIMEOUT_S))),
            minimum=minimum,
            maximum=workers or max(minimum, _whole(config, "maxWorkers", minimum)),
            cpus=CPUS_A_THREAD * _whole(section, "intra_op_threads", 1),
            gpus=_share(section.get("gpu_share", 1)) if wants_gpu else 0.0,
        )

    def options(self) -> dict[str, Any]:
        """Options of the deployment.

        A replica has two batches at a time: one that runs, and one that waits for it. Autoscaling
        aims at one batch a replica: desired replicas = ongoing requests / target (Ray Serve,
        "Autoscaling": target_ongoing_requests).
        """
        scaling: dict[str, Any] = {"num_replicas": self.minimum}
        if self.maximum > self.minimum:
            scaling = {
                "autoscaling_config": {
                    "min_replicas": self.minimum,
                    "max_replicas": self.maximum,
                    "initial_replicas": self.minimum,
                    "target_ongoing_requests": max(2, self.batch_size),
                    "upscale_delay_s": UPSCALE_S,
                    "downscale_delay_s": DOWNSCALE_S,
                    "look_back_period_s": LOOK_BACK_S,
                    "metrics_interval_s": METRICS_S,
                }
            }
        return scaling | {
            "max_constructor_retry_count": 1,  # what cannot load will not the next time
            "max_ongoing_requests": max(16, 2 * self.batch_size),
            "max_queued_requests": QUEUE,
            "health_check_period_s": HEALTH_PERIOD_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": GRACE_S,
            "graceful_shutdown_wait_loop_s": 0.2,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        }


def _whole(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PackageError(
            f"{name} in model-config.yaml must be a whole number from 1 to run on Ray, got "
            f"{value!r}. Package the model again."
        )
    return value


def _share(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise PackageError(
        f"marship.gpu_share in model-config.yaml must be over 0 and at most 1, got {value!r}. "
        "Package the model again."
    )
