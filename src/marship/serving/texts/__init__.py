"""Texts as a model reads them, and what it says of them: as `pipeline()` of transformers does it.

An archive says in `text.json` what its model is for. `tokenizer.json` holds the tokenizer, which
the package tokenizers runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Array, Arrays, Contract
from marship.errors import InvalidInputError, LoadError
from marship.serving.texts import answers
from marship.serving.texts.answers import Answer

TEXT_FILE = "text.json"
TOKENIZER_FILE = "tokenizer.json"
NO_LIMIT = 1 << 30
CHARACTERS_PER_TOKEN = 40
"""A text with more is refused before it is divided, which takes microseconds a character."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a tokenizer makes of a text, by the names that models of transformers have for it."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text, and the second one of a pair."""

    text: str
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of a response.

    Attributes:
        is_list: Whether it is a list.
        top_k: How many labels of each text are listed; None gives the best one alone.
        is_kserve: Whether it is KServe v1's object with that list.
    """

    is_list: bool = False
    top_k: int | None = None
    is_kserve: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """A text as a tokenizer divides it.

    Attributes:
        text: As it was sent, behind the folder's prompt if it states one.
        inputs: The model's inputs, int64, shape (1, length).
        words: Each token's text.
        offsets: Where in the text each token begins and ends, in characters.
        is_special: Whether a token is none of the text's, bool, shape (length,).
        is_unknown: Whether a token stands for whatever the tokenizer does not know, alike.
    """

    text: Text
    inputs: Arrays
    words: list[str]
    offsets: list[tuple[int, int]]
    is_special: Array
    is_unknown: Array


class TextModel:
    """Turns texts into a model's inputs, and its outputs into what is said of the texts.

    Args:
        about: What text.json holds: `task`, `output`, `unknown` (the id of the token for unknown
            text, or null), `truncation` (the side that is cut: right or left), and what `answers`
            reads for the task. May hold `split_special_tokens` (whether what reads as a special
            token is text) and `prompt` (what is put before each text).
        tokenizer: The file tokenizer.json.
        contract: The model's.
        is_cut: Whether longer texts are cut to what the model takes; else they are refused.

    Raises:
        LoadError: The files are not of this form, or tokenizers is not installed.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        tokenizer: Path,
        contract: Contract,
        *,
        is_cut: bool = False,
    ) -> None:
        try:
            self._output = str(about["output"])
            self._answerer = answers.answerer(about)
            self.answer_schema = answers.schema(about)
            self._unknown = about["unknown"]
            side = about["truncation"]
            self._prompt = str(about.get("prompt", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(
                f"{TEXT_FILE} must say what the model is for, got {error!r}. Package again."
            ) from error
        self._dtypes = {spec.name: spec.dtype for spec in contract.inputs}
        if not {"input_ids"} <= self._dtypes.keys() <= set(INPUTS):
            raise LoadError(
                f"the model must take {', '.join(INPUTS)} or some of them, got "
                f"{', '.join(map(str, contract.inputs))}."
            )
        self.shortest, self.longest = _bounds(contract)
        self._is_cut = is_cut
        self._tokenizer = _opened(tokenizer)
        # transformers sets it at each call: tokenizer.json has no place for it
        self._tokenizer.encode_special_tokens = bool(about.get("split_special_tokens", False))
        if is_cut and self.longest < NO_LIMIT:
            self._tokenizer.enable_truncation(self.longest, direction=side)

    def read(self, text: Text, place: str = "text") -> TokenizedText:
        """The tokens of a text.

        Args:
            text: The text.
            place: What messages call it.

        Raises:
            InvalidInputError: It has more tokens than the model takes, or none.
        """
        size, most = len(text.text) + len(text.pair or ""), CHARACTERS_PER_TOKEN * self.longest
        if size > most:
            raise InvalidInputError(
                f"{place} must have at most {most:,} characters, for a model that takes "
                f"{self.longest} tokens, got {size:,}. Send a shorter one."
            )
        try:
            # an empty second text makes no pair, as in transformers
            found = self._tokenizer.encode(self._prompt + text.text, text.pair or None)
        except BaseException as error:  # tokenizers' panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InvalidInputError(f"{place} must be tokenized, got: {error}.") from error
        if not self.shortest <= len(found) <= self.longest:
            cut = "Send a shorter one, or package with --option truncate=true, which cuts it."
            raise InvalidInputError(
                f"{place} must have from {self.shortest} to {self.longest} tokens, got "
                f"{len(found)}{f'. {cut}' if len(found) > self.longest else '.'}"
            )
        ids = np.array(found.ids)
        columns = (ids, found.attention_mask, found.type_ids)
        return TokenizedText(
            Text(self._prompt + text.text, text.pair),
            {
                name: np.array(column, self._dtypes[name])[None]
                for name, column in zip(INPUTS, columns, strict=True)
                if name in self._dtypes
            },
            found.tokens,
            found.offsets,
            np.array(found.special_tokens_mask, bool),
            ids == self._unknown,
        )

    def answer(self, outputs: Arrays, tokens: TokenizedText, top_k: int | None = None) -> Answer:
        """What the model says of one text, as a value that orjson writes.

        Args:
            outputs: The model's, of this text alone.
            tokens: From `read`.
            top_k: How many labels to list, the best ones; None gives the best one alone.

        Raises:
            ModelError: The outputs are not finite.
        """
        return self._answerer(outputs[self._output][0], tokens, top_k)


def _bounds(contract: Contract) -> tuple[int, int]:
    """The smallest and largest number of tokens."""
    (axis,) = {spec.shape[1] for spec in contract.inputs}
    low, high = contract.bounds.get(axis, (1, None)) if isinstance(axis, str) else (axis, axis)
    return low, NO_LIMIT if high is None else high


def _opened(path: Path) -> Any:  # noqa: ANN401  tokenizers types its classes partly
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise LoadError(
            "tokenizers must be installed where texts are served, got no such package. "
            "Run: pip install 'marship[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        raise LoadError(f"{path.name} must be a tokenizer, got: {error}. Package again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
