"""How to reach a server: its home folder, or its addresses and tokens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from marship import texts
from marship.client import AsyncClient, Client
from marship.engines.addresses import MODEL_STORE
from marship.errors import UsageError
from marship.exchange.calls import Side

_LONGEST_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How to reach a server; the fields are arguments of `Client`."""

    home: Path | None = None
    inference_url: str | None = None
    management_url: str | None = None
    inference_token: str | None = None
    management_token: str | None = None
    ca: Path | None = None
    model_store: Path = MODEL_STORE
    engine: str | None = None

    def client(self, **settings: Any) -> Client:  # noqa: ANN401  Client's own
        """A blocking client, with further arguments of `Client`."""
        return Client(**self._arguments(), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:  # noqa: ANN401  the same
        """An asyncio client."""
        return AsyncClient(**self._arguments(), **settings)

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ApiTokens:
    """A server's tokens for the inference API and the management API."""

    inference: str | None = None
    management: str | None = None

    @classmethod
    def read(cls, path: Path, api: Side) -> Self:
        """Read a token file: TorchServe's key_file.json, or a file with the token of one API.

        Raises:
            UsageError: It cannot be read, or is neither of the two.
        """
        rule = "a token file must hold one token, or be a server's key_file.json"
        try:
            with texts.open_file(path) as file:
                text = file.read(_LONGEST_FILE_BYTES).decode("ascii").strip()
        except OSError as error:
            raise UsageError(f"{rule}, got {path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{rule}, got {path} with other bytes than ASCII.") from error
        if text.startswith("{"):
            try:
                keys = json.loads(text)
                return cls(keys["inference"]["key"], keys["management"]["key"])
            except (ValueError, LookupError, TypeError) as error:
                raise UsageError(f"{rule}, got {path} with other JSON.") from error
        if not text or len(text.split()) > 1:
            raise UsageError(f"{rule}, got {path} with {len(text.split())} words.")
        return cls(**{api: text})
