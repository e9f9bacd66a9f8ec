"""Tells what a text is about, or turns it into numbers: models of transformers.

The body is a text (text/plain, UTF-8), or JSON: a string, an object, or a list of either.

    {"text": "The film was long."}
    {"text": "A man sleeps.", "text_pair": "Nobody is awake."}
    {"text": ["Good.", "Bad."], "top_k": 2}
    {"instances": ["Good.", {"text": "Bad."}]}

The response is what `pipeline()` of transformers gives for one text, or a list with that of each;
see `marship.serving.texts.answers`. `top_k` is of text-classification: as many labels, best first;
where the host passes query parameters on, `?top_k=2` says it for any body.
`instances` are KServe v1's, and get `{"predictions": [...]}`.

Texts with more tokens than the model takes are refused. `handler:` in model-config.yaml may set
`truncate: true`, which cuts them.
"""

from typing import Any

import orjson

from marship.contract import Arrays
from marship.errors import (
    InvalidInputError,
    LoadError,
    MalformedError,
    MarshipError,
    TooLargeError,
)
from marship.serving.formats import codec, forms, instances
from marship.serving.formats.media import TEXT_TYPE
from marship.serving.handler import OnnxHandler, Reply, Request
from marship.serving.message import JSON_TYPE
from marship.serving.model.batch import Parts
from marship.serving.openapi import schemas
from marship.serving.openapi.interface import TEXT, BodyForm, Interface
from marship.serving.texts import (
    TEXT_FILE,
    TOKENIZER_FILE,
    AnswerForm,
    Text,
    TextModel,
    TokenizedText,
)
from marship.serving.texts.answers import CLASSIFY

MOST_TEXTS = 32
KEYS = ("text", "text_pair", "top_k")
_MARK = "\ufeff"
"""Byte order mark, which some editors put before a text."""


class TextHandler(OnnxHandler):
    """Texts in, labels or numbers out."""

    def prepare(self) -> None:
        """Read the archive's text.json and tokenizer.json, and the settings of `handler:`."""
        is_cut = _truncate(self.config.get("handler") or {})
        try:
            about = orjson.loads((self.folder / TEXT_FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise LoadError(
                f"{TEXT_FILE} must be in the archive, got {error!r}. Package again."
            ) from error
        self._model = TextModel(about, self.folder / TOKENIZER_FILE, self.contract, is_cut=is_cut)
        self._classifies = about["task"] == CLASSIFY

    def advice(self) -> object:
        """A request of the right form."""
        return {"text": "a text, or a list of texts"}

    def interface(self) -> Interface:
        """Texts as they are or in JSON; what pipelines of transformers give."""
        answer = self._model.answer_schema
        pair = {"text_pair": schemas.TEXT} if self._classifies else {}
        whole = {"additionalProperties": False}
        text = {"anyOf": [schemas.TEXT, {**schemas.record(pair, text=schemas.TEXT), **whole}]}
        texts = schemas.array(text, 1, MOST_TEXTS)
        strings = schemas.array(schemas.TEXT, 1, MOST_TEXTS)
        top_k = {"top_k": {"type": "integer", "minimum": 1}} if self._classifies else {}
        one = {**schemas.record({**pair, **top_k}, text=schemas.TEXT), **whole}
        pairs = {"text_pair": strings} if self._classifies else {}
        many = {**schemas.record({**pairs, **top_k}, text=strings), **whole}
        instances = {**schemas.record({"signature_name": {}}, instances=texts), **whole}
        forms = [one, many, schemas.TEXT, texts, instances]
        titles = ["one text", "several texts", "a string", "a list", "KServe v1"]
        answers = schemas.array(answer, 1, MOST_TEXTS)
        return Interface(
            TEXT,
            (
                *(BodyForm(JSON_TYPE, *each) for each in zip(forms, titles, strict=True)),
                BodyForm(TEXT_TYPE, schemas.TEXT, "one text as it is"),
            ),
            (
                BodyForm(JSON_TYPE, answer, "of one text"),
                BodyForm(JSON_TYPE, answers, "of a list"),
                BodyForm(JSON_TYPE, schemas.record(predictions=answers), "KServe v1"),
            ),
            parameters=tuple(
                {"name": name, "in": "query", "schema": schema} for name, schema in top_k.items()
            ),
        )

    def decode(
        self, request: Request
    ) -> tuple[Arrays | Parts, tuple[list[TokenizedText], AnswerForm]]:
        """Each text's tokens, and the form of the response.

        Raises:
            RequestError: The body holds no text, or one that the model does not take.
        """
        texts, form = self._texts(request)
        self._check_task(texts, form.top_k)
        places = range(1, len(texts) + 1)
        names = [f"text {place}" for place in places] if form.is_list else ["text"]
        tokens = [self._model.read(text, name) for text, name in zip(texts, names, strict=True)]
        parts: Parts = [each.inputs for each in tokens]
        return parts, (tokens, form)

    def encode(self, outputs: Parts, state: tuple[list[TokenizedText], AnswerForm]) -> Reply:
        """The response for one text, or a list."""
        tokens, form = state
        rows = []
        for output, read in zip(outputs, tokens, strict=True):
            if isinstance(output, MarshipError):
                raise output
            rows.append(self._model.answer(output, read, form.top_k))
        answer = rows if form.is_list else rows[0]
        if form.is_kserve:
            answer = {"predictions": rows}
        return Reply(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def _texts(self, request: Request) -> tuple[list[Text], AnswerForm]:
        """The texts, and the form of the response."""
        top_k = _queried(request)
        if forms.kind_of(request.content_type) == TEXT_TYPE:
            return [Text(_plain(request.body))], AnswerForm(top_k=top_k)
        value = codec.read_json(request.body, request.content_type)
        is_kserve = isinstance(value, dict) and instances.is_request(value, self.contract)
        if is_kserve:
            value = _instances(value)
        elif isinstance(value, dict):
            if "text" not in value or set(value) - set(KEYS):
                raise InvalidInputError(
                    f"the body must be an object with text and no keys but {', '.join(KEYS)}."
                )
            if value.get("top_k") is not None:
                top_k = _counted(value["top_k"])
            value = _rows(value)
        if not isinstance(value, list):
            return [_text(value, "text")], AnswerForm(top_k=top_k)
        if not 1 <= len(value) <= MOST_TEXTS:
            kind = TooLargeError if value else InvalidInputError
            raise kind(f"a request must hold from 1 to {MOST_TEXTS} texts, got {len(value)}.")
        found = [_text(each, f"text {n}") for n, each in enumerate(value, 1)]
        return found, AnswerForm(is_list=True, top_k=top_k, is_kserve=is_kserve)

    def _check_task(self, texts: list[Text], top_k: int | None) -> None:
        """Refuse what other pipelines than text-classification have no use for."""
        if self._classifies:
            return
        if top_k is not None or any(text.pair is not None for text in texts):
            raise InvalidInputError(
                "text_pair and top_k must be left out: they are of text-classification alone."
            )


def _queried(request: Request) -> int | None:
    """The query's or form's top_k; a body's own wins."""
    text = request.parameter("top_k")
    if text is None:
        return None
    number = text.lstrip("0")[:9] if text.isascii() and text.isdigit() else ""
    return _counted(int(number) if number else text)


def _counted(top_k: object) -> int:
    if type(top_k) is not int or top_k < 1:
        raise InvalidInputError(f"top_k must be a whole number from 1, got {top_k!r:.40}.")
    return top_k


def _rows(value: dict[str, Any]) -> Any:  # noqa: ANN401  any JSON value
    """One text with its pair, or a list of them."""
    text, pair = value["text"], value.get("text_pair")
    if not isinstance(text, list):
        return {"text": text} if pair is None else {"text": text, "text_pair": pair}
    if pair is None:
        return text
    if not isinstance(pair, list) or len(pair) != len(text):
        raise InvalidInputError(f"text_pair must be a list as long as text, {len(text)}.")
    return [{"text": one, "text_pair": other} for one, other in zip(text, pair, strict=True)]


def _instances(value: dict[str, Any]) -> list[Any]:
    rows = value[instances.KEY]
    if not isinstance(rows, list):
        raise InvalidInputError(f"instances must be a list of texts, got {rows!r:.60}.")
    return rows


def _text(value: object, place: str) -> Text:
    """One text of a string, or of an object with a pair."""
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, dict) and {"text"} <= value.keys() <= {"text", "text_pair"}:
        text, pair = value["text"], value.get("text_pair")
        if isinstance(text, str) and isinstance(pair, str | None):
            return Text(text, pair)
    raise InvalidInputError(
        f"{place} must be a string, or an object with text and perhaps text_pair, strings both, "
        f"got {value!r:.60}."
    )


def _plain(body: object) -> str:
    if isinstance(body, str):
        return body.removeprefix(_MARK)
    if not isinstance(body, bytes | bytearray | memoryview):
        raise MalformedError("a text must be sent as bytes, got a JSON value.")
    forms.check_compression(body)
    try:
        return bytes(body).decode().removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise MalformedError(f"a text must be UTF-8, got {error.reason}.") from error


def _truncate(settings: object) -> bool:
    if not isinstance(settings, dict) or not settings.keys() <= {"truncate"}:
        raise LoadError(
            f"handler in model-config.yaml must set nothing but truncate, got {settings!r}."
        )
    value = settings.get("truncate", False)
    if not isinstance(value, bool):
        raise LoadError(f"handler.truncate must be true or false, got {value!r}.")
    return value
