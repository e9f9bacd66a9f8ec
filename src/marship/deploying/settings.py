"""What is written for containers, and how: apart from its code, so that commands load at once."""

from dataclasses import dataclass
from pathlib import Path

from marship.settings import Settings, setting

SCALERS = ("hpa", "cpu", "keda", "none")
_MOST = (1 << 31) - 1
"""Kubernetes' counts are int32."""


@dataclass(frozen=True, slots=True)
class ImageSettings(Settings):
    """How an image is built."""

    base: str | None = setting(None, "the base image with Python, pinned: NAME@sha256:DIGEST")
    out: Path = setting(Path("image/Containerfile"), "the file; its folder is the build context")
    trust: Path | None = setting(
        None, "folder of public keys: the image serves only what they signed"
    )
    fetch_from: str | None = setting(
        None, "a URL below which each start fetches the archives; the image holds none"
    )
    index: str | None = setting(
        None, "the URL of an index of packages that PyPI has not, such as torch's for processors"
    )
    gpu: bool = setting(False, "with ONNX Runtime for CUDA; the base must have CUDA")


@dataclass(frozen=True, slots=True)
class ManifestSettings(Settings):
    """How models run on Kubernetes."""

    image: str | None = setting(None, "the image: REGISTRY/NAME:TAG, or with @sha256:DIGEST")
    out: Path = setting(Path("manifests"), "the folder for the files")
    name: str | None = setting(None, "of the objects of a single model; else the model's")
    namespace: str | None = setting(None, "of the objects; else that of kubectl")
    replicas: int = setting(2, "pods at least", minimum=1, maximum=_MOST)
    max_replicas: int = setting(8, "pods at most", minimum=1, maximum=_MOST)
    scaler: str = setting(
        "hpa",
        "by busy workers: hpa or keda; by processor time: cpu; none: replicas stay",
        usual=SCALERS,
    )
    prometheus: str | None = setting(None, "the URL of Prometheus, which KEDA asks")
    target_percent: int = setting(
        70, "how busy workers shall be, or processors", minimum=1, maximum=100
    )
    workers: int = setting(1, "worker processes of a pod", minimum=1, maximum=_MOST)
    cpu: str = setting("1", "processors of a pod, such as 500m or 2")
    memory: str | None = setting(None, "of a pod, such as 1Gi; else by the archive's size")
    gpus: int = setting(0, "of a pod, nvidia.com/gpu", minimum=0, maximum=_MOST)
    token_secret: str | None = setting(
        None, "Secret with the key `token`, which requests must carry; else NAME-token"
    )
    seal_secret: str | None = setting(None, "Secret with the key `key`, which opens a sealed model")
    trust: Path | None = setting(
        None, "folder of the public keys that the image pins: archives are held against them"
    )
    fetch_from: str | None = setting(None, "as of the image: where pods fetch the archives")
    clients: tuple[str, ...] = setting((), "a namespace whose pods may ask, beside the own one")
    monitoring: str = setting("monitoring", "the namespace of Prometheus")
    start_s: int = setting(
        120, "how long a pod may take until it is ready", minimum=1, maximum=_MOST
    )
    grace_s: int = setting(25, "how long requests may take after SIGTERM", minimum=1, maximum=_MOST)
    kserve: bool = setting(False, "a ClusterServingRuntime and an InferenceService for each model")
    storage: str | None = setting(None, "where KServe finds the archive: oci://, pvc://, s3://")
