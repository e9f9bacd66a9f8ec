"""The parts of custom resources that manifests use, as JSON schemas.

Written by hand after the definitions in KServe's and KEDA's repositories; a field that is not
named here is refused, as their API servers would drop or refuse it. What they take from Kubernetes,
such as containers, is held against Kubernetes' own schemas.
"""

from typing import Any

import jsonschema

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def form(required: list[str], **fields: Schema) -> Schema:
    """An object of these fields alone."""
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """A resource with its metadata."""
    metadata = form(["name"], name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
    return form(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


def many(item: Schema) -> Schema:
    """A list with entries."""
    return {"type": "array", "items": item, "minItems": 1}


_FORMAT = form(["name"], name=TEXT, version=TEXT, autoSelect={"type": "boolean"}, priority=COUNT)
_RUNTIME = form(
    ["containers"],
    annotations=TEXTS,
    supportedModelFormats=many(_FORMAT),
    protocolVersions=many({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
    multiModel={"type": "boolean"},
    containers=many({"type": "object"}),
    volumes=many({"type": "object"}),
)
_EXTERNAL = form(
    ["metric", "target"],
    metric=form([], backend={"enum": ["prometheus", "graphite"]}, serverAddress=TEXT, query=TEXT),
    target=form(
        ["type"],
        type={"enum": ["Utilization", "Value", "AverageValue"]},
        averageValue={"type": "string", "pattern": r"^[0-9.]+$"},
    ),
)
_PREDICTOR = form(
    ["model"],
    minReplicas=COUNT,
    maxReplicas=COUNT,
    scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
    scaleTarget=COUNT,
    autoScaling=form(
        [], metrics=many(form(["type"], type={"const": "External"}, external=_EXTERNAL))
    ),
    terminationGracePeriodSeconds=COUNT,
    automountServiceAccountToken={"type": "boolean"},
    securityContext={"type": "object"},
    model=form(
        ["modelFormat"],
        modelFormat=form(["name"], name=TEXT),
        runtime=TEXT,
        protocolVersion=TEXT,
        storageUri=TEXT,
        resources={"type": "object"},
    ),
)
_SCALED = form(
    ["scaleTargetRef", "triggers"],
    scaleTargetRef=form(["name"], name=TEXT),
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    pollingInterval=COUNT,
    cooldownPeriod=COUNT,
    fallback=form(["failureThreshold", "replicas"], failureThreshold=COUNT, replicas=COUNT),
    triggers=many(
        form(
            ["metadata", "type"],
            type=TEXT,
            metricType={"enum": ["Value", "AverageValue", "Utilization"]},
            metadata=TEXTS,
        )
    ),
)
SCHEMAS = {
    "ClusterServingRuntime": resource(
        "serving.kserve.io/v1alpha1", "ClusterServingRuntime", _RUNTIME
    ),
    "InferenceService": resource(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        form(["predictor"], predictor=_PREDICTOR),
    ),
    "ScaledObject": resource("keda.sh/v1alpha1", "ScaledObject", _SCALED),
}


def check(value: dict[str, Any]) -> None:
    """Hold a resource against its schema.

    Raises:
        jsonschema.ValidationError: It has another form.
    """
    jsonschema.validate(value, SCHEMAS[value["kind"]])
