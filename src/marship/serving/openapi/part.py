"""A part of an OpenAPI document: some models' paths, and what they refer to."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import orjson

_PASSED = ("/ping", "/openapi.json")


def of_models(whole: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A document with the paths of these models alone."""
    return _part(whole, names, lambda _, operation: operation["tags"][0] in names)


def exposed(whole: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A document of what a proxy passes on: predictions of these models by POST, and health.

    The paths of KServe are none of them, nor are those of other models.
    """
    kept = _part(
        whole,
        names,
        lambda path, operation: (
            path in _PASSED or (path.startswith("/predictions/") and operation["tags"][0] in names)
        ),
    )
    for item in kept["paths"].values():
        item.pop("put", None)
    return kept


def _part(
    whole: Mapping[str, Any],
    names: Collection[str],
    is_kept: Callable[[str, Mapping[str, Any]], bool],
) -> dict[str, Any]:
    paths = {
        path: dict(item)
        for path, item in whole["paths"].items()
        if all(is_kept(path, operation) for operation in item.values())
    }
    text, shared = orjson.dumps(paths).decode(), whole["components"]
    used = {
        kind: {key: part for key, part in parts.items() if f'"#/components/{kind}/{key}"' in text}
        for kind, parts in shared.items()
        if kind in ("requestBodies", "responses")
    }
    tags = {tag for item in paths.values() for one in item.values() for tag in one["tags"]}
    return {
        **whole,
        "tags": [tag for tag in whole["tags"] if tag["name"] in tags],
        "paths": paths,
        "components": {**shared, **used},
        "x-marship-models": [one for one in whole["x-marship-models"] if one["name"] in names],
    }
