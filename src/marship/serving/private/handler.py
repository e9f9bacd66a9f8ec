"""EncryptedHandler: serves a model that computes on ciphertexts.

A client's requests are messages (`message`): pieces of its evaluation keys, and questions. The
worker has no key that decrypts. Plain tensors are refused.

`handler:` in model-config.yaml may set `key_store_mb`, the size of all clients' keys on disk,
`key_lifetime_s`, after which unused ones are removed, and `cached_keys_mb`, the size of those that
each worker keeps in memory.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from marship.errors import (
    InvalidInputError,
    LoadError,
    MalformedError,
    MarshipError,
    UnsupportedMediaError,
    bare,
)
from marship.serving.formats import forms
from marship.serving.handler import Clock, OnnxHandler, Reply, Request, hidden
from marship.serving.message import JSON_TYPE
from marship.serving.model import sealed
from marship.serving.model.graphs import Graphs
from marship.serving.model.session import Session, SessionSettings
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import ENCRYPTED, BodyForm, Interface
from marship.serving.private import keys
from marship.serving.private.evaluate import EvaluationKeys
from marship.serving.private.keystore import NEW_SHARE, KeyStore
from marship.serving.private.message import (
    ANSWER,
    HAVE,
    HE_TYPE,
    PIECE,
    QUESTION,
    HeMessage,
)
from marship.serving.private.session import EncryptedSession

logger = logging.getLogger(__name__)

KEYS_FOLDER = "client-keys"
KEYS_VARIABLE = "MARSHIP_CLIENT_KEYS"
"""Set by `marship serve`: the folder of clients' keys in the server's home."""
_MB = 1_000_000
_HOME_VARIABLE, _HOME = "MARSHIP_HOME", ".marship"
_DEFAULTS = {"key_store_mb": 2000, "key_lifetime_s": 86_400, "cached_keys_mb": 500}


class EncryptedHandler(OnnxHandler):
    """Encrypted questions in, encrypted answers out."""

    session: EncryptedSession
    is_private = True

    def _open(self, settings: SessionSettings) -> Session:
        opener = sealed.opener(self.folder)
        session = EncryptedSession(self.folder, self.contract, settings, opener)
        self.graphs, self._golden_requests = Graphs(), []
        self.golden_s = session.replay_golden(session.golden_source())
        if opener is not None:
            opener.forget_key()
        return session

    def prepare(self) -> None:
        """Open the store of clients' keys."""
        most = {name: _option(self.config.get("handler") or {}, name) for name in _DEFAULTS}
        public = self.session.public
        self._store = KeyStore(
            root=_store_folder(),
            plan=public.digest,
            set_bytes=keys.stream_bytes(public),
            most_bytes=most["key_store_mb"] * _MB,
            lifetime_s=most["key_lifetime_s"],
        )
        _check_room(self._store)
        self._store.sweep()
        self._cache: OrderedDict[bytes, EvaluationKeys] = OrderedDict()
        loaded_bytes = len(public.key_bytes) * public.ring.loaded_key_bytes()
        # one set is needed to answer at all; all sets of a plan are of one size
        self._most_cached = max(1, most["cached_keys_mb"] * _MB // loaded_bytes)

    def joins(self) -> bool:
        """Each question is under a key of its own."""
        return False

    def rechecks(self) -> bool:
        """There are no rows to recheck."""
        return False

    def advice(self) -> object:
        """How to ask."""
        return f"an encrypted question, {HE_TYPE}, as marship.private.HeClient sends it"

    def interface(self) -> Interface:
        """Messages of a client of marship."""
        kept = schemas.record(kept={"type": "integer"})
        have = schemas.record(have=schemas.array({"type": "integer"}))
        return Interface(
            ENCRYPTED,
            (BodyForm(HE_TYPE, schemas.BINARY, "a piece of keys, or a question"),),
            (
                BodyForm(HE_TYPE, schemas.BINARY, "an encrypted answer"),
                BodyForm(JSON_TYPE, kept, "a piece of keys is kept"),
                BodyForm(JSON_TYPE, have, "pieces of keys that are here"),
            ),
            codes={"409": ["keys_missing"], "507": ["key_store_full"]},
            about=str(self.advice()),
        )

    def _reply_each(self, requests: Sequence[Request], clock: Clock) -> list[Reply]:
        replies = [self._replied(request) for request in requests]
        clock.lap("infer")
        return replies

    def _replied(self, request: Request) -> Reply:
        try:
            self.check_fields(request)
            return self._answer(_opened(request))
        except MarshipError as error:
            return self._failed(bare(error))
        except Exception:  # an error in one request must not affect others
            return self._error(hidden("answer"))

    def _answer(self, message: HeMessage) -> Reply:
        if message.plan.hex() != self._store.plan:
            raise InvalidInputError(
                f"a client file must be that of the model that is asked, {self._store.plan[:16]}, "
                f"got one of {message.plan.hex()[:16]}. Get the client file of this version."
            )
        if message.kind == PIECE:
            self._store.put(message.keys, message.number, message.count, message.payload)
            return Reply(orjson.dumps({"kept": message.number}))
        if message.kind == HAVE:
            return Reply(orjson.dumps({"have": self._store.have(message.keys)}))
        if message.kind != QUESTION:
            raise MalformedError(
                f"an encrypted request must be a question or a piece of keys, got kind "
                f"{message.kind!r}. Ask with marship.private.HeClient."
            )
        result = self.session.evaluator.run(self._keys(message.keys), message.payload)
        self._store.use(message.keys)
        answer = HeMessage(ANSWER, message.plan, message.keys, result, asked=message.digest)
        return Reply(answer.to_bytes(), HE_TYPE)

    def _keys(self, key_id: bytes) -> EvaluationKeys:
        """A client's keys, from memory or from the store; those used longest ago are dropped."""
        if (found := self._cache.get(key_id)) is not None:
            self._cache.move_to_end(key_id)
            return found
        stream = self._store.read(key_id)
        try:
            found = keys.loaded(self.session.public, stream)
        except MalformedError:
            self._store.remove(key_id)
            raise
        self._cache[key_id] = found
        while len(self._cache) > self._most_cached:
            self._cache.popitem(last=False)
        return found


def _opened(request: Request) -> HeMessage:
    """The message in a request.

    Raises:
        UnsupportedMediaError: It is of another content type: plain values.
        MalformedError: It was damaged.
    """
    kind = forms.kind_of(request.content_type or request.header("content-type"))
    body = request.body
    if kind != HE_TYPE or not isinstance(body, bytes | bytearray | memoryview):
        raise UnsupportedMediaError(
            f"a private model must be asked encrypted, {HE_TYPE}, got {kind or 'no type'}. Ask "
            "with marship.private.HeClient, and send nothing in the open."
        )
    return HeMessage.from_bytes(memoryview(body))


def _store_folder() -> Path:
    named = os.environ.get(KEYS_VARIABLE)
    home = Path(os.environ.get(_HOME_VARIABLE) or _HOME).absolute()
    return Path(named) if named else home / KEYS_FOLDER


def _check_room(store: KeyStore) -> None:
    least_mb = -(-NEW_SHARE * store.set_bytes[-1] // _MB)
    if store.most_bytes < least_mb * _MB:
        raise LoadError(
            f"handler.key_store_mb in model-config.yaml must be at least {least_mb}, four times a "
            f"client's keys, got {store.most_bytes // _MB}. Package with --option key_store_mb="
            f"{least_mb}, or more for many clients."
        )


def _option(section: dict[str, Any], name: str) -> int:
    value = section.get(name, _DEFAULTS[name])
    if type(value) is not int or value < 1:
        raise LoadError(
            f"handler.{name} in model-config.yaml must be a whole number from 1, got {value!r}. "
            f"Leave it out for {_DEFAULTS[name]}."
        )
    return value
