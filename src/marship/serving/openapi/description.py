"""What a worker says of its model, for the OpenAPI document of its server."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import orjson

from marship.contract import Contract, TensorSpec
from marship.serving.formats import kserve
from marship.serving.formats.forms import kind_of
from marship.serving.formats.golden import GoldenRequest, value_of
from marship.serving.message import JSON_TYPE
from marship.serving.model import sealed
from marship.serving.openapi import validity
from marship.serving.openapi.interface import TENSORS, BodyForm, Interface, opaque

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Of a description: the acceptor holds those of all models."""
GOLDEN = "golden"
"""How the names of examples begin that were golden cases or golden requests."""
_MOST_EXAMPLES, _MOST_EXAMPLE_BYTES = 3, 1 << 13


class Described(Protocol):
    """A service, as far as it is described."""

    folder: Path
    contract: Contract
    timeout_s: float | None
    max_request_bytes: int

    def interface(self) -> Interface:
        """What the model takes and gives."""


def encoded(service: Described, recorded: Sequence[GoldenRequest], response_bytes: int) -> bytes:
    """The description as JSON; never raises: a model is served without one, too.

    Args:
        service: The model.
        recorded: Its golden requests, which are examples.
        response_bytes: The largest response.
    """
    try:
        found = service.interface()
        if any(service.folder.glob(f"*{sealed.SUFFIX}")):  # golden cases are as secret as it is
            found = _without_golden(found)
        else:
            found = _with_recorded(found, recorded)
        data = orjson.dumps(_facts(service, found, response_bytes))
        validity.check(orjson.loads(data))
        if len(data) <= MOST_BYTES:
            return data
        logger.warning("an interface must have %d bytes at most, got %d.", MOST_BYTES, len(data))
    except Exception:  # a handler's own mistake must not keep it from serving
        logger.exception("the handler must declare an interface, got an error.")
    return orjson.dumps(_facts(service, opaque(None), response_bytes))


def _facts(service: Described, interface: Interface, response_bytes: int) -> dict[str, Any]:
    """What a document needs of a model."""
    contract, is_plain = service.contract, interface.kind == TENSORS
    return {
        **interface.facts(),
        "limits": {
            "request_bytes": service.max_request_bytes,
            "response_bytes": response_bytes,
            "timeout_s": service.timeout_s,
        },
        "inputs": [_tensor(spec, contract) for spec in contract.inputs] if is_plain else [],
        "outputs": [_tensor(spec, contract) for spec in contract.outputs] if is_plain else [],
    }


def _tensor(spec: TensorSpec, contract: Contract) -> dict[str, Any]:
    axes = {axis for axis in spec.shape if isinstance(axis, str)}
    bounds = {axis: contract.bounds.get(axis, (1, None)) for axis in sorted(axes)}
    return {**asdict(spec), "datatype": kserve.datatype(spec), "bounds": bounds}


def _with_recorded(interface: Interface, recorded: Sequence[GoldenRequest]) -> Interface:
    """The interface with golden requests in JSON as examples."""
    requests: dict[str, Any] = {}
    responses: dict[str, Any] = {}
    for one in recorded:
        size = max(len(one.body), len(one.response))
        if kind_of(one.content_type) == JSON_TYPE and size <= _MOST_EXAMPLE_BYTES:
            requests[f"{GOLDEN}: {one.name}"] = value_of(one.body, one.content_type)
            if kind_of(one.response_type) == JSON_TYPE:
                responses[f"{GOLDEN}: {one.name}"] = value_of(one.response, JSON_TYPE)
        if len(requests) == _MOST_EXAMPLES:
            break
    return replace(
        interface,
        requests=_with_examples(interface.requests, requests),
        responses=_with_examples(interface.responses, responses),
    )


def _with_examples(forms: tuple[BodyForm, ...], more: Mapping[str, Any]) -> tuple[BodyForm, ...]:
    place = next((i for i, form in enumerate(forms) if form.content_type == JSON_TYPE), None)
    if place is None or not more:
        return forms
    form = replace(forms[place], examples={**forms[place].examples, **more})
    return (*forms[:place], form, *forms[place + 1 :])


def _without_golden(interface: Interface) -> Interface:
    def stripped(forms: tuple[BodyForm, ...]) -> tuple[BodyForm, ...]:
        return tuple(
            replace(
                form,
                examples={k: v for k, v in form.examples.items() if not k.startswith(GOLDEN)},
            )
            for form in forms
        )

    return replace(
        interface, requests=stripped(interface.requests), responses=stripped(interface.responses)
    )
