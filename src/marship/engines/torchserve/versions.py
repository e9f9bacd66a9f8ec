"""The versions of a model under concurrent changes: listing, default, and unregistering."""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

from marship.engines.engine import ModelStatus
from marship.engines.names import checked_name
from marship.engines.torchserve import draining
from marship.engines.torchserve.access import Access
from marship.engines.torchserve.status import describe, optional, unknown
from marship.errors import NotFoundError, ServerError
from marship.exchange.calls import Call, Flow, Pause, path

_PAGE = 100
_WITHDRAWALS = 10
_WITHDRAW_POLL_S = 0.2


def names(access: Access) -> Flow[list[str]]:
    """The names of all models."""
    found: list[str] = []
    page: str | None = "0"
    while page is not None:
        params = {"limit": str(_PAGE), "next_page_token": page}
        response = yield from access.authorized(Call("management", "GET", "/models", params))
        listed = response.json()
        found += [entry["modelName"] for entry in listed["models"]]
        page = listed.get("nextPageToken")
    return found


def all_versions(access: Access, name: str | None) -> Flow[list[ModelStatus]]:
    """All versions of a model, or of all models if the name is None; possibly none."""
    found: list[ModelStatus] = []
    for model in (yield from names(access)) if name is None else [name]:
        with suppress(NotFoundError):
            found += yield from describe(access, model, "all")
    return found


def set_default(access: Access, name: str, version: str) -> Flow[None]:
    """Make a version the default, which serves requests without a version.

    Raises:
        NotFoundError: There is no such model or version.
    """
    where = path("models", checked_name(name), version, "set-default")
    try:
        yield from access.authorized(Call("management", "PUT", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def unregister(access: Access, name: str, version: str | None = None) -> Flow[None]:
    """Unregister a version, or the default one, and stop its workers.

    Raises:
        NotFoundError: There is no such model or version.
        ServerError: It is the default version, and there are others.
    """
    where = path("models", checked_name(name), *optional(version))
    try:
        with draining.taken_off(access, name, version) as taken:
            yield taken
            yield from access.authorized(Call("management", "DELETE", where))
    except NotFoundError as error:
        raise unknown(name, version) from error


def withdraw(access: Access, status: ModelStatus, *, leaves_last: bool = False) -> Flow[None]:
    """Unregister a version if it was created by the same registration.

    TorchServe unregisters a default version only if there is no other. So another one is made
    the default first: the newest of those that are ready.

    Args:
        access: The server's addresses and tokens.
        status: The version, as `register` returned it.
        leaves_last: Keep it if it is ready and all others are gone meanwhile.

    Raises:
        ServerError: The server refused, or the version was kept.
    """
    name, version = status.name, status.version
    refusal: ServerError | None = None
    for attempt in range(_WITHDRAWALS):
        if attempt:
            yield Pause(_WITHDRAW_POLL_S)
        found = yield from all_versions(access, name)
        mine = [s for s in found if s.registration == status.registration]
        if not mine or not status.registration:
            return
        others = [s for s in found if s.version != version]
        if leaves_last and not others and mine[0].ready:
            raise ServerError(f"{name} {version} stays, since other clients removed all others.")
        try:
            yield from _move_default(access, name, version, others)
            yield from unregister(access, name, version)
        except NotFoundError:  # another version, or this one, was just unregistered
            continue
        except ServerError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            refusal = error  # it was made the default meanwhile
            continue
        return
    raise refusal or ServerError(f"{name} must keep its versions for a moment, got others. Retry.")


def _move_default(
    access: Access, name: str, version: str, others: Sequence[ModelStatus]
) -> Flow[None]:
    """If a version is the default and there are others, make the best of them the default."""
    (default,) = yield from describe(access, name)
    if default.version == version and others:
        yield from set_default(access, name, max(others, key=_fitness).version)


def _fitness(status: ModelStatus) -> tuple[bool, list[int]]:
    numbers = [int(part) for part in status.version.split(".") if part.isdecimal()]
    return status.ready > 0, numbers
