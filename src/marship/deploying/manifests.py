"""Objects of Kubernetes for archives: one Deployment, with what belongs to it, for each model.

The figures that pods are scaled by are the workers' own (`engines.standalone.figures`): the share
of time in which they have a batch. It is known before a queue is long, and does not depend on how
long a request of this model takes.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from marship import storage
from marship.deploying import image, rules
from marship.deploying.settings import SCALERS, ManifestSettings
from marship.deploying.template import filled, text
from marship.errors import UsageError
from marship.trust.archive import Archive

_NOTE = "written by marship manifests; see docs/kubernetes.md"
_PRE_STOP_S, _SLACK_S = 5, 5
_PROCESS_BYTES, _COPIES = 160 << 20, 3
"""A worker without its model, the host likewise, and how much of a model's size loading takes."""
_STEP_BYTES = 64 << 20
_KSERVE_MODELS = "/mnt/models"
_SEAL_VARIABLE = "MARSHIP_SEAL_SECRET"
_STEPS = ("decode", "infer", "encode")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ManifestsWritten:
    """What was written.

    Attributes:
        files: In the order in which they are applied.
        models: The archives' models.
        secrets: Secrets that must exist, by the key that each must have.
    """

    files: tuple[Path, ...]
    models: tuple[str, ...]
    secrets: Mapping[str, str]


def write(settings: ManifestSettings, paths: Sequence[Path]) -> ManifestsWritten:
    """Write the objects, a folder for each model.

    Args:
        settings: How the models run.
        paths: The archives.

    Raises:
        UsageError: A setting is invalid, Kubernetes would refuse an object, or a file would be
            replaced that was not written here.
        PackageError: An archive cannot be read.
        SignatureError: An archive is not signed with a pinned key.
    """
    _check(settings, len(paths))
    found = image.read_all(paths, settings.trust)
    objects: dict[str, Object] = {}
    secrets: dict[str, str] = {}
    for one, place in zip(found, image.places(found, settings.fetch_from), strict=True):
        values = _values(settings, one, place)
        make = _for_kserve if settings.kserve else _for_kubernetes
        objects |= dict(make(settings, values))
        secrets[values["token_secret"]] = "token"
        if settings.seal_secret and one.sealed:
            secrets[settings.seal_secret] = "key"
    objects["kustomization.yaml"] = filled("kustomization", {"files": list(objects)})
    _check_out(settings.out, objects)
    others = _listed(settings.out) - set(objects)
    with storage.replacing_all(settings.out) as draft:
        for file, value in objects.items():
            (draft / file).parent.mkdir(exist_ok=True)
            (draft / file).write_text(text(value, _NOTE))
    for file in others:
        _remove(settings.out / file)
    names = tuple(one.name for one in found)
    return ManifestsWritten(tuple(settings.out / file for file in objects), names, secrets)


def _check_out(folder: Path, files: Iterable[str]) -> None:
    """Check that what is replaced was written here.

    Raises:
        UsageError: It may be the user's own.
    """
    for file in files:
        path = folder / file
        for place in (path.parent, path):
            is_free = not place.exists() and not place.is_symlink()
            if not (is_free or (place.is_dir() if place != path else _is_ours(path))):
                raise UsageError(
                    f"{place} must not exist, or be what marship manifests wrote, got something "
                    "else. Choose another folder with --out."
                )


def _is_ours(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(f"# {_NOTE}".encode())
    except OSError:
        return False


def _listed(folder: Path) -> set[str]:
    """What an earlier run wrote there, by its kustomization."""
    path = folder / "kustomization.yaml"
    if not _is_ours(path):
        return set()
    try:
        found = yaml.safe_load(path.read_text())["resources"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return set()
    return {file for file in found if re.fullmatch(r"([a-z0-9-]+/)?[a-z]+\.yaml", str(file))}


def _remove(path: Path) -> None:
    """Remove what an earlier run wrote: two scalers of a model would work against each other."""
    if _is_ours(path):
        path.unlink()
        with suppress(OSError):  # it holds something else
            path.parent.rmdir()


def _check(settings: ManifestSettings, count: int) -> None:
    rules.check_image(settings.image or "")
    rules.check_cpu(settings.cpu)
    rules.check_folder(settings.out)
    if settings.replicas > settings.max_replicas and settings.scaler != "none":
        raise UsageError(
            f"--replicas must be --max-replicas at most, got {settings.replicas} and "
            f"{settings.max_replicas}."
        )
    if settings.name is not None and count > 1:
        raise UsageError(f"--name must come with one archive, got {count}. Leave it out.")
    if settings.scaler not in SCALERS:
        raise UsageError(f"--scaler must be one of {', '.join(SCALERS)}, got {settings.scaler!r}.")
    if settings.scaler == "keda":
        rules.check_url("--prometheus", settings.prometheus)
    if settings.kserve:
        rules.check_storage(settings.storage)
    if settings.namespace is not None:
        rules.check_namespace("--namespace", settings.namespace)
    rules.check_namespace("--monitoring", settings.monitoring)
    for name in settings.clients:
        rules.check_namespace("--clients", name)


def _values(settings: ManifestSettings, one: Archive, place: str) -> Object:
    """What the templates' placeholders stand for."""
    name = settings.name or one.name
    rules.check_name(f"the name of {one.name}'s objects", name)
    token_secret = settings.token_secret or ("marship" if settings.kserve else name) + "-token"
    rules.check_secret("the token's Secret", token_secret)
    _check_device(settings, one)
    env = environment(settings, one)
    selector = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "marship"}
    return {
        "name": name,
        "namespace": settings.namespace,
        "selector": selector,
        "labels": {**selector, "app.kubernetes.io/component": "model-server"},
        "annotations": {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8082",
            "prometheus.io/path": "/metrics",
            "marship/model": f"{one.name} {one.version}",
        },
        "image": settings.image,
        "args": _arguments(settings, _KSERVE_MODELS if settings.kserve else place, env),
        "env": env or None,
        "container_name": "kserve-container" if settings.kserve else "marship",
        "start_s": settings.start_s,
        "termination_s": _PRE_STOP_S + settings.grace_s + _SLACK_S,
        "resources": _resources(settings, one),
        "token_secret": token_secret,
        "replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "fixed_replicas": settings.replicas if settings.scaler == "none" else None,
        "prometheus": settings.prometheus,
        "busy_query": _busy_query(one.name, settings.namespace),
        "busy_threshold": f"{settings.workers * settings.target_percent / 100:g}",
        "monitoring": settings.monitoring,
        "client_peers": [
            {"podSelector": {}},
            *(
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other}}}
                for other in settings.clients
            ),
        ],
        "egress": _egress(settings),
        "storage": settings.storage,
    }


def _check_device(settings: ManifestSettings, one: Archive) -> None:
    wanted = sorted(image.accelerators(one))
    if settings.gpus and not wanted:
        raise UsageError(
            f"{one.name} must ask for cuda or tensorrt to have a GPU, got a model for processors. "
            "Leave out --gpus, or package it with a provider for one."
        )
    if wanted and not settings.gpus:
        raise UsageError(
            f"{one.name} must have a GPU, since it asks for {wanted[0]}, got none. Add --gpus 1."
        )


def environment(settings: ManifestSettings, one: Archive) -> list[Object]:
    """Variables of a container: the key of a sealed model, from a Secret.

    Raises:
        UsageError: The model is sealed, and no Secret is named.
    """
    if not one.sealed:
        return []
    if settings.seal_secret is None:
        raise UsageError(
            f"{one.name} is sealed and must have its key in a Secret, got none. Add --seal-secret."
        )
    rules.check_secret("the sealing key's Secret", settings.seal_secret)
    source = {"secretKeyRef": {"name": settings.seal_secret, "key": "key"}}
    return [{"name": _SEAL_VARIABLE, "valueFrom": source}]


def _arguments(settings: ManifestSettings, place: str, env: list[Object]) -> list[str]:
    words = [place, "--workers", str(settings.workers), "--grace-s", str(settings.grace_s)]
    words += ["--require-token", "/run/secrets/marship/token"]
    words += ["--seal-key", f"env:{_SEAL_VARIABLE}"] * bool(env)
    return words


def _resources(settings: ManifestSettings, one: Archive) -> Object:
    """What a pod asks for, which is also its limit: so no neighbour slows it down."""
    memory = settings.memory
    if memory is None:
        size_bytes = sum(member.size_bytes for member in one.members)
        wanted = (1 + settings.workers) * _PROCESS_BYTES + _COPIES * size_bytes
        memory = f"{-(-wanted // _STEP_BYTES) * (_STEP_BYTES >> 20)}Mi"
    elif rules.memory_bytes(memory) < 2 * _PROCESS_BYTES:
        raise UsageError(
            f"memory must be {2 * _PROCESS_BYTES >> 20}Mi at least, got {memory}: the host and a "
            "worker take that without a model."
        )
    gpus = {"nvidia.com/gpu": settings.gpus} if settings.gpus else {}
    return {"cpu": settings.cpu, "memory": memory, **gpus}


def _busy_query(model: str, namespace: str | None) -> str:
    """Seconds of work per second, of all workers of all pods of a namespace (PromQL)."""
    label = f"model_name={json.dumps(model, ensure_ascii=False)}"
    if namespace is not None:
        label += f',namespace="{namespace}"'
    rates = (f"rate(marship_{step}_seconds_total{{{label}}}[1m])" for step in _STEPS)
    return f"sum({' + '.join(rates)})"


def _egress(settings: ManifestSettings) -> list[Object]:
    """Nothing, or names and the port from which archives are fetched."""
    if settings.fetch_from is None:
        return []
    port = rules.check_url("--fetch-from", settings.fetch_from)
    names = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return [{"ports": names}, {"ports": [{"port": port, "protocol": "TCP"}]}]


def _for_kubernetes(settings: ManifestSettings, values: Object) -> Iterator[tuple[str, Object]]:
    values = {**values, "container": filled("container", values), "metric": _metric(settings)}
    kinds = ["deployment", "service", "networkpolicy"]
    kinds += ["poddisruptionbudget"] * (settings.replicas > 1)
    scalers = {"hpa": "horizontalpodautoscaler", "keda": "scaledobject"}
    scalers["cpu"] = scalers["hpa"]
    kinds += [scalers[settings.scaler]] if settings.scaler in scalers else []
    for kind in kinds:
        yield f"{values['name']}/{kind}.yaml", filled(kind, values)


def _metric(settings: ManifestSettings) -> Object:
    """What a HorizontalPodAutoscaler looks at."""
    if settings.scaler == "cpu":
        target = {"type": "Utilization", "averageUtilization": settings.target_percent}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    target = {"type": "AverageValue", "averageValue": f"{10 * settings.target_percent}m"}
    return {"type": "Pods", "pods": {"metric": {"name": "marship_busy_share"}, "target": target}}


def _for_kserve(settings: ManifestSettings, values: Object) -> Iterator[tuple[str, Object]]:
    if values["env"] is not None:
        raise UsageError(
            f"{values['name']} must not be sealed to run on KServe: one runtime serves all models, "
            "and would hold the key of each. Write manifests without --kserve."
        )
    if settings.scaler == "hpa":
        raise UsageError(
            "--scaler must be cpu, keda or none with --kserve, got hpa. Add: --scaler cpu"
        )
    container = filled("container", {**values, "resources": None})  # each service has its own
    runtime = filled("clusterservingruntime", {**values, "container": container})
    yield "clusterservingruntime.yaml", runtime
    yield (
        f"{values['name']}/inferenceservice.yaml",
        filled("inferenceservice", {**values, **_kserve_scaling(settings, values)}),
    )


def _kserve_scaling(settings: ManifestSettings, values: Object) -> Object:
    """How KServe scales: by KEDA and the workers' figures, by processor time, or not at all."""
    none = {"kserve_metric": None, "kserve_target": None, "kserve_scaling": None}
    if settings.scaler == "none":
        return {**none, "kserve_scaler": "none", "max_replicas": settings.replicas}
    if settings.scaler == "cpu":
        target = {"kserve_metric": "cpu", "kserve_target": settings.target_percent}
        return {**none, **target, "kserve_scaler": "hpa"}
    metric = {
        "backend": "prometheus",
        "serverAddress": settings.prometheus,
        "query": values["busy_query"],
    }
    target = {"type": "AverageValue", "averageValue": values["busy_threshold"]}
    external = {"type": "External", "external": {"metric": metric, "target": target}}
    return {**none, "kserve_scaler": "keda", "kserve_scaling": {"metrics": [external]}}
