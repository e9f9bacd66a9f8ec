"""OpenAPI documents of one model: of an archive, or of a server that serves it."""

import json
from pathlib import Path
from typing import Any

from marship.client import Client
from marship.errors import LoadError, NotFoundError
from marship.operate import check
from marship.serving.openapi.document import ServedModel, document
from marship.trust import archive
from marship.version import VERSION


def of_archive(path: Path) -> dict[str, Any]:
    """The document of an archive's model, whose handler's code is run, as `check` does.

    Raises:
        PackageError: The archive cannot be read.
        LoadError: A worker could not serve the model, or was packed by an earlier marship.
        SealError: The model is sealed and cannot be decrypted.
    """
    found = archive.read(path)
    facts = check.measured(found, {"describes": True}).get("description")
    if not isinstance(facts, dict):
        raise LoadError(
            f"{path} must be packed by a marship that describes models, got an earlier one. "
            "Package the model again."
        )
    model = ServedModel(found.name, found.version, is_default=True, is_ready=False, facts=facts)
    return only(document([model], VERSION), found.name)


def of_server(client: Client, name: str) -> dict[str, Any]:
    """The document of a model on a server, with all its versions.

    Raises:
        NotFoundError: The server has no such model.
        ServerError: It has no direct address.
    """
    return only(client.openapi(), name)


def only(whole: dict[str, Any], name: str) -> dict[str, Any]:
    """A document with the paths of one model alone, and what they refer to.

    Raises:
        NotFoundError: It has no such model.
    """
    models = [model for model in whole["x-marship-models"] if model["name"] == name]
    if not models:
        known = ", ".join(sorted({model["name"] for model in whole["x-marship-models"]}))
        raise NotFoundError(f"{name} must be registered, got a server with {known or 'no models'}.")
    paths = {
        path: item
        for path, item in whole["paths"].items()
        if any(operation["tags"] == [name] for operation in item.values())
    }
    text, shared = json.dumps(paths), whole["components"]
    used = {
        kind: {key: part for key, part in parts.items() if f'"#/components/{kind}/{key}"' in text}
        for kind, parts in shared.items()
        if kind in ("requestBodies", "responses")
    }
    tags = [tag for tag in whole["tags"] if tag["name"] == name]
    return {
        **whole, "tags": tags, "paths": paths, "components": {**shared, **used},
        "x-marship-models": models,
    }  # fmt: skip
