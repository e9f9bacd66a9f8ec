"""The flags for a command's server: home, URL, token."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from marship.errors import TokenError, UsageError

if TYPE_CHECKING:  # its module is slow to import
    from marship.client.address import Address

Api = Literal["inference", "management"]

_OTHER_API: Mapping[Api, Api] = {"inference": "management", "management": "inference"}


def on_server(api: Api, *, needs_both: bool = False) -> Callable[..., Callable[..., Any]]:
    """Turn a command's parameter `address` into `--home`, `--url`, `--token` and related flags.

    Args:
        api: The API that the command calls, which `--url` and `--token` are for.
        needs_both: Whether it calls the other API as well, which gets its own flag, as does the
            folder of archives that it reads.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        flags = _flags(api, needs_both=needs_both)

        @functools.wraps(function)
        def command(**given: Any) -> Any:  # noqa: ANN401  Typer calls it by name
            chosen = {flag.name: given.pop(flag.name) for flag in flags}
            address = _address(api, needs_both=needs_both, **chosen)
            with _naming(chosen["token_file"], address):
                return function(**given, address=address)

        # Typer evaluates annotations, and that of an Address would need its slow imports
        command.__annotations__ = {
            name: hint for name, hint in function.__annotations__.items() if name != "address"
        }
        kept = [p for p in signature.parameters.values() if p.name != "address"]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in [*kept, *flags]]
        )
        return command

    return decorate


@contextmanager
def _naming(token_file: Path | None, address: "Address") -> Iterator[None]:
    """Name the file of a token that the server refused."""
    try:
        yield
    except TokenError as error:
        held = {"inference": address.inference_token, "management": address.management_token}
        sides = tuple(f"the {side} token" for side, token in held.items() if token)
        if token_file is None or not str(error).startswith(sides):
            raise
        raise TokenError(
            f"{token_file} must hold a token that is accepted, got: {error}"
        ) from error


def _flags(api: Api, *, needs_both: bool) -> list[inspect.Parameter]:
    other = _OTHER_API[api]
    known = f"MARSHIP_{api.upper()}"
    flags = [
        _flag("home", Path, "--home", "the server's folder; else MARSHIP_HOME, else .marship here"),
        _flag("url", str, "--url", f"{api} address of a remote server; else {known}_URL"),
        _flag("token", str, "--token", f"{api} token, visible to others in ps; else the file's"),
        _flag(
            "token_file",
            Path,
            "--token-file",
            f"a file with that token, or a copy of the server's key_file.json; else {known}_TOKEN",
        ),
        _flag("engine", str, "--engine", "torchserve or ray, which the home must be of"),
        _flag("ca", Path, "--ca", "PEM file of the trusted CA certificates for https"),
    ]
    if needs_both:
        text = f"its {other} address; else MARSHIP_{other.upper()}_URL"
        flags.append(_flag("other_url", str, f"--{other}-url", text))
        text = "for a remote server: local copies of its archives; else model_store here"
        flags.append(_flag("model_store", Path, "--model-store", text))
    return flags


def _flag(name: str, kind: Any, flag: str, text: str) -> inspect.Parameter:  # noqa: ANN401  a type
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(flag, help=text)],
    )


def _address(
    api: Api,
    *,
    needs_both: bool,
    home: Path | None,
    url: str | None,
    token: str | None,
    token_file: Path | None,
    engine: str | None,
    ca: Path | None,
    other_url: str | None = None,
    model_store: Path | None = None,
) -> "Address":
    from marship.client.address import Address, ApiTokens
    from marship.engines.addresses import MODEL_STORE

    for flag, given in (("--url", url), ("--token", token), ("the other API's URL", other_url)):
        if given is not None and not given.strip():
            raise UsageError(f"{flag} must not be empty, got {given!r}. Leave it out, or set it.")
    if home and (url or other_url):
        raise UsageError(
            "--home must come without --url, got both. The first is a server whose folder is at "
            "hand, the second one elsewhere."
        )
    if token and token_file:
        raise UsageError("--token must come without --token-file, got both. Leave one out.")
    other = _OTHER_API[api]
    if needs_both and url and not (other_url or os.environ.get(f"MARSHIP_{other.upper()}_URL")):
        raise UsageError(
            f"--{other}-url must come with --url here, since both APIs are called, got none."
        )
    tokens = ApiTokens.read(token_file, api) if token_file else ApiTokens(**{api: token})
    return Address(
        home=home,
        inference_token=tokens.inference,
        management_token=tokens.management,
        ca=ca,
        engine=engine,
        model_store=model_store or MODEL_STORE,
        **{f"{api}_url": url, f"{other}_url": other_url},
    )
