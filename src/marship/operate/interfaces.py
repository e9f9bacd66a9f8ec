"""OpenAPI documents of one model: of an archive, or of a server that serves it."""

from pathlib import Path
from typing import Any

from marship.client import Client
from marship.errors import LoadError, NotFoundError
from marship.operate import check
from marship.serving.openapi import part
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
    """A document with the paths of one model alone.

    Raises:
        NotFoundError: It has no such model.
    """
    known = sorted({model["name"] for model in whole["x-marship-models"]})
    if name not in known:
        raise NotFoundError(
            f"{name} must be registered, got a server with {', '.join(known) or 'no models'}."
        )
    return part.of_models(whole, [name])
