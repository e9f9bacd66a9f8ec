"""The OpenAPI document of all models of a server."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from marship.serving.openapi import refusals

_OTHER = {"description": "The model was packed by an earlier marship: package it again."}
_UNKNOWN: Mapping[str, Any] = {
    "kind": "other",
    "requests": [{"content_type": "application/octet-stream", "schema": {}}],
    "responses": [{"content_type": "application/octet-stream", "schema": {}}],
    "about": _OTHER["description"],
}
_ABOUT = (
    "Predictions of the models on this server. Bodies may be compressed (Content-Encoding gzip, "
    "zstd or deflate). Responses have `X-Request-Id`, taken over from the request, and those of "
    "models `Server-Timing` in milliseconds: decode, infer, encode."
)
_SERVER_TAG = "the server"
"""No name of a model has a space."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model on the server.

    Attributes:
        name: The model's name.
        version: The version.
        is_default: Whether requests without a version go to it.
        is_ready: Whether a worker serves it.
        facts: What its worker says of it (`Service.description`); None where it says nothing.
    """

    name: str
    version: str
    is_default: bool
    is_ready: bool
    facts: Mapping[str, Any] | None


def document(
    models: Sequence[ServedModel], version: str, *, has_tokens: bool = True
) -> dict[str, Any]:
    """The document.

    Args:
        models: Those of the server.
        version: The server's own.
        has_tokens: Whether requests need a token.
    """
    made = _Document(has_tokens=has_tokens)
    for model in models:
        made.add(model)
    return made.whole(version)


class _Document:
    """A document that grows with each model."""

    def __init__(self, *, has_tokens: bool) -> None:
        self._has_tokens = has_tokens
        self._paths: dict[str, Any] = {}
        self._bodies: dict[str, Any] = {}
        self._responses: dict[str, Any] = refusals.components()
        self._models: list[dict[str, Any]] = []
        self._tags: dict[str, str] = {}
        self._ids: set[str] = set()
        self._add_server_paths()

    def whole(self, version: str) -> dict[str, Any]:
        """The document so far."""
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        tags = [{"name": name, "description": about} for name, about in self._tags.items()]
        return {
            "openapi": "3.1.0",
            "info": {"title": "marship", "version": version, "description": _ABOUT},
            "servers": [{"url": "/"}],
            **({"security": [{"token": []}]} if self._has_tokens else {}),
            "tags": [*tags, {"name": _SERVER_TAG, "description": "The server itself."}],
            "paths": self._paths,
            "components": {
                "schemas": {"Error": refusals.SCHEMA},
                "requestBodies": self._bodies,
                "responses": self._responses,
                **({"securitySchemes": schemes} if self._has_tokens else {}),
            },
            "x-marship-models": self._models,
        }

    def add(self, model: ServedModel) -> None:
        """Add a version: its own paths, and those without a version where it is the default."""
        facts = _UNKNOWN if model.facts is None else model.facts
        key = self._key(model)
        self._bodies[key] = {"required": True, "content": _content(facts["requests"])}
        self._responses[key] = {
            "description": "The prediction, in the form of the request.",
            "content": _content(facts["responses"]),
        }
        self._tags.setdefault(model.name, str(facts.get("about", "")))
        name, version = quote(model.name, safe=""), quote(model.version, safe="")
        if model.is_default:
            self._add_paths(model, key, facts, f"/predictions/{name}", f"models/{name}")
        own = (f"/predictions/{name}/{version}", f"models/{name}/versions/{version}")
        self._add_paths(model, f"{key}", facts, *own)
        self._models.append(
            {
                "name": model.name,
                "version": model.version,
                "is_default": model.is_default,
                "is_ready": model.is_ready,
                "body": f"#/components/requestBodies/{key}",
                "response": f"#/components/responses/{key}",
                "kind": facts["kind"],
                **{part: facts[part] for part in ("limits", "inputs", "outputs") if part in facts},
            }
        )

    def _key(self, model: ServedModel) -> str:
        """A name for components: OpenAPI 3.1.0, 4.8.7 has few characters for them."""
        return self._unique(re.sub(r"[^A-Za-z0-9._-]", "-", f"{model.name}.{model.version}"))

    def _unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._ids or found in self._responses:
            number += 1
            found = f"{name}-{number}"
        self._ids.add(found)
        return found

    def _add_paths(
        self, model: ServedModel, key: str, facts: Mapping[str, Any], ours: str, theirs: str
    ) -> None:
        def predicts(verb: str) -> dict[str, Any]:
            return self._prediction(model, key, facts, verb)

        self._paths[ours] = {"post": predicts("post"), "put": predicts("put")}
        self._paths[f"/v2/{theirs}/infer"] = {"post": predicts("infer")}
        self._paths[f"/v1/{theirs}:predict"] = {"post": predicts("predict")}
        self._paths[f"/v2/{theirs}"] = self._reads(
            f"{key}.metadata", "What it takes and gives.", _METADATA, model
        )
        for path, verb in ((f"/v2/{theirs}/ready", "ready"), (f"/v1/{theirs}", "state")):
            self._paths[path] = self._reads(
                f"{key}.{verb}", "Whether it is ready.", _READY, model, is_open=True
            )

    def _prediction(
        self, model: ServedModel, key: str, facts: Mapping[str, Any], verb: str
    ) -> dict[str, Any]:
        parameters = list(facts.get("parameters", ()))
        return {
            "operationId": self._unique(f"{key}.{verb}"),
            "summary": f"A prediction of {model.name} {model.version}.",
            "tags": [model.name],
            **({"parameters": parameters} if parameters else {}),
            "requestBody": {"$ref": f"#/components/requestBodies/{key}"},
            "responses": {
                "200": {"$ref": f"#/components/responses/{key}"},
                **refusals.of_prediction(facts.get("codes", {})),
            },
        }

    def _reads(
        self,
        name: str,
        summary: str,
        schema: Mapping[str, Any],
        model: ServedModel | None = None,
        *,
        is_open: bool = False,
    ) -> dict[str, Any]:
        """A path for GET; an open one needs no token, and says by 503 that something is not so."""
        content = {"application/json": {"schema": schema}}
        errors = refusals.of_reading()
        if is_open:
            either = {"anyOf": [schema, {"$ref": "#/components/schemas/Error"}]}
            errors["503"] = {
                "description": "No.", "content": {"application/json": {"schema": either}},
            }  # fmt: skip
            errors.pop("401")
        operation = {
            "operationId": self._unique(name),
            "summary": summary,
            "tags": [model.name if model else _SERVER_TAG],
            "responses": {"200": {"description": "Yes.", "content": content}, **errors},
            **({"security": []} if is_open and self._has_tokens else {}),
        }
        return {"get": operation}

    def _add_server_paths(self) -> None:
        flag = {"type": "boolean"}
        for path, summary, field, schema in (
            ("/ping", "Whether the server serves.", "status", {"type": "string"}),
            ("/v2/health/live", "Whether the server lives.", "live", flag),
            ("/v2/health/ready", "Whether all models have their workers.", "ready", flag),
        ):
            facts = {"type": "object", "properties": {field: schema}, "required": [field]}
            name = path.removeprefix("/").removeprefix("v2/").replace("/", ".")
            self._paths[path] = self._reads(f"server.{name}", summary, facts, is_open=True)
        about = "The server's name and version."
        self._paths["/v2"] = self._reads("server.metadata", about, _SERVER)
        document = {"type": "object"}
        self._paths["/openapi.json"] = self._reads("server.document", "This document.", document)


def _content(forms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The forms by media type; several of one are alternatives."""
    found: dict[str, Any] = {}
    for form in forms:
        entry = found.setdefault(form["content_type"], {"schemas": [], "examples": {}})
        entry["schemas"].append((form.get("title"), form["schema"]))
        for name, value in form.get("examples", {}).items():
            key = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
            entry["examples"][key] = {"summary": name, "value": value}
    return {
        content_type: {
            "schema": _either(one["schemas"]),
            **({"examples": one["examples"]} if one["examples"] else {}),
        }
        for content_type, one in found.items()
    }


def _either(forms: Sequence[tuple[str | None, Mapping[str, Any]]]) -> dict[str, Any]:
    """One schema of all; titles tell several apart, and generators name types after them."""
    if len(forms) == 1:
        ((title, schema),) = forms
        return {**({"description": title} if title else {}), **schema}
    return {"anyOf": [{**schema, **({"title": title} if title else {})} for title, schema in forms]}


_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
}
_METADATA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["name", "versions", "inputs", "outputs"],
}
_READY: Mapping[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
    "required": ["name", "ready"],
}
_SERVER: Mapping[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
    "required": ["name", "version"],
}
