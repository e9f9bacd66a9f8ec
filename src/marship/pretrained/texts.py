"""A model for texts: its tokenizer, how many tokens it takes, and texts to try it on."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marship import storage
from marship.contract import Arrays
from marship.errors import ModelError, UsageError
from marship.pretrained import labels
from marship.pretrained.folder import ModelFolder, opened, read_object
from marship.serving.texts import INPUTS, TEXT_FILE, TOKENIZER_FILE, Text
from marship.serving.texts.answers import CLASSIFY, EXTRACT, POOLINGS, TAG

SAMPLES_FILE = "sample_texts.json"
SHORTEST = Text("No")
SAMPLES = (
    SHORTEST.text,
    "The film was wonderful.",
    "Anna Schmidt moved from Berlin to a small company in Lisbon last year.",
    "I would not buy it again: it broke after two days, and nobody answered my letter!",
    "Température: 21 °C, 3.5 km, 50 %.",
)
"""Nobody's texts: proofs and golden requests, which travel in the archive, use them."""
PAIR = Text("A man is asleep on the sofa.", "Nobody is awake.")
AXIS = "length"
USUAL_TOKENS = 512
"""The bound of a model that states none."""
APART = "texts of different lengths run apart: padding would change what they get"
_VOCABULARIES = (TOKENIZER_FILE, "vocab.*", "*.vocab", "*.model", "*.tiktoken", "tekken.json")
_MODULES_FILE, _LENGTH_FILE = "modules.json", "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_MOST_CONTROLS = 16
_NO_BOUND = 1_000_000
"""transformers has 1e30 for a tokenizer without a bound."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """What sentence-transformers makes of all tokens' states; nothing without its modules.json.

    Attributes:
        names: Of `POOLINGS`, whose vectors are joined.
        is_normalized: Whether the vector gets length 1.
        prompt: What stands before each text.
    """

    names: tuple[str, ...] = ()
    is_normalized: bool = False
    prompt: str = ""


def tokenizer_of(folder: ModelFolder) -> Any:  # noqa: ANN401  a class of many
    """The folder's tokenizer, as transformers reads it.

    Raises:
        UsageError: There is none, or none that the package tokenizers runs.
    """
    # of a folder without one transformers makes a tokenizer that knows no word
    if not any(any(folder.path.glob(form)) for form in _VOCABULARIES):
        raise UsageError(
            f"{folder.path} must hold a tokenizer, such as {TOKENIZER_FILE}, got none. Save it "
            "there with its save_pretrained()."
        )
    tokenizer = opened("AutoTokenizer", folder.path)
    if not tokenizer.is_fast:
        raise UsageError(
            f"{folder.path} must have a tokenizer that the package tokenizers runs, got "
            f"{type(tokenizer).__name__}, which runs in Python alone. Convert it to tokenizer.json."
        )
    return tokenizer


def samples_of(folder: ModelFolder, tokenizer: Any, most: int) -> list[Text]:  # noqa: ANN401
    """The texts to try a model on that it takes; pairs, too, for tasks that have them.

    Raises:
        UsageError: It takes none of them.
    """
    found = [*map(Text, SAMPLES), *([PAIR] if folder.task == CLASSIFY else [])]
    prompt = pooling_of(folder.path).prompt if folder.task == EXTRACT else ""
    read = [Text(prompt + text.text, text.pair) for text in found]
    counts = [row_of(tokenizer, INPUTS[:1], text)[INPUTS[0]].shape[1] for text in read]
    if min(counts) > most:
        raise UsageError(
            f"the model must take texts of {min(counts)} tokens, such as {read[0].text!r}, got a "
            f"bound of {most}. Raise that, such as model_max_length in tokenizer_config.json."
        )
    return [text for text, count in zip(found, counts, strict=True) if count <= most]


def controls_of(tokenizer: Any) -> list[Text]:  # noqa: ANN401  a class of many
    """Texts that hold special tokens: a tokenizer says whether these are text there."""
    names = [*dict.fromkeys(map(str, tokenizer.all_special_tokens))][:_MOST_CONTROLS]
    return [Text(f"No {name} no") for name in names]


def request_of(texts: Sequence[Text]) -> bytes:
    """A request with these texts."""
    rows = [t.text if t.pair is None else {"text": t.text, "text_pair": t.pair} for t in texts]
    return json.dumps(rows, indent=1).encode()


def files(
    folder: ModelFolder,
    tokenizer: Any,  # noqa: ANN401  a class of many
    output: str,
    samples: Sequence[Text],
) -> dict[str, bytes]:
    """What goes into the archive beside the model, by name: text.json, tokenizer and samples.

    Args:
        folder: The model's.
        tokenizer: Of transformers.
        output: The name of the model's output that is served.
        samples: Texts for the golden request.

    Raises:
        UsageError: Labels, pooling or the tokenizer cannot be served.
    """
    about: dict[str, Any] = {
        "task": folder.task,
        "output": output,
        "unknown": tokenizer.unk_token_id,
        "truncation": tokenizer.truncation_side,
        "split_special_tokens": bool(tokenizer.split_special_tokens),
    }
    if folder.task == EXTRACT:
        pooling = pooling_of(folder.path)
        about |= {"pooling": pooling.names, "normalize": pooling.is_normalized}
        about |= {"prompt": pooling.prompt}
    else:
        about["labels"] = labels.labels_of(folder.config)
        is_tag = folder.task == TAG  # whose pipeline knows softmax alone
        about["scores"] = "softmax" if is_tag else labels.scores_of(folder.config)
    return {
        TEXT_FILE: (json.dumps(about, indent=2) + "\n").encode(),
        TOKENIZER_FILE: tokenizer.backend_tokenizer.to_str(pretty=False).encode(),
        SAMPLES_FILE: request_of(samples),
    }


def pooling_of(path: Path) -> Pooling:
    """How sentence-transformers pools the states, by the folder's modules.json.

    Raises:
        UsageError: It has modules that are not applied here.
    """
    if not (path / _MODULES_FILE).is_file():
        return Pooling()
    modules = storage.read_json(path / _MODULES_FILE)
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        place = path / str(modules[1]["path"]) / "config.json"
    except (TypeError, KeyError, IndexError):
        kinds, place = [], path
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"{path / _MODULES_FILE} must name Transformer, Pooling and perhaps Normalize, got "
            f"{', '.join(kinds) or 'others'}. Remove the file to serve the states of all tokens."
        )
    if _lengths(path).get("do_lower_case"):
        raise UsageError(
            f"{path / _LENGTH_FILE} must leave the case of texts to the tokenizer, got "
            "do_lower_case. Set it in the tokenizer."
        )
    about = read_object(place)
    names = _pooling_names(about)
    if not names or not set(names) <= set(POOLINGS):
        raise UsageError(
            f"{place} must choose among {', '.join(POOLINGS)}, got {', '.join(names) or 'none'}."
        )
    prompt = _prompt(path / _PROMPTS_FILE)
    if prompt and not about.get("include_prompt", True):
        raise UsageError(
            f"{place} must pool the tokens of the prompt {prompt!r}, too, got include_prompt "
            f"false. Remove default_prompt_name of {_PROMPTS_FILE} to serve texts without a prompt."
        )
    return Pooling(names, kinds[-1] == "Normalize", prompt)


def _prompt(file: Path) -> str:
    """What sentence-transformers puts before each text that is encoded without a prompt's name.

    Raises:
        UsageError: The default prompt is none of the prompts.
    """
    about = read_object(file) if file.is_file() else {}
    name, prompts = about.get("default_prompt_name"), about.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise UsageError(
            f"default_prompt_name of {file} must be the name of a prompt in it, got {name!r}. "
            "Correct it, or remove it to serve texts without a prompt."
        )
    return str(prompts[name])


def _pooling_names(about: dict[str, Any]) -> tuple[str, ...]:
    """The poolings that are joined, by the configuration of sentence-transformers' Pooling."""
    if mode := about.get("pooling_mode"):  # of newer versions: one, or several in their order
        return tuple(map(str, mode)) if isinstance(mode, list) else (str(mode),)
    chosen = [key for key, value in about.items() if key.startswith("pooling_mode_") and value]
    known = [key for key in _POOLING_MODES if key in chosen]
    return tuple(_POOLING_MODES.get(key, key) for key in [*known, *sorted({*chosen} - {*known})])


_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers joins them."""


def _lengths(path: Path) -> dict[str, Any]:
    file = path / _LENGTH_FILE
    return read_object(file) if file.is_file() else {}


def inputs_of(tokenizer: Any, model: Any) -> list[str]:  # noqa: ANN401  classes of many
    """The inputs that the tokenizer makes and the model takes."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in INPUTS if name in tokenizer.model_input_names and name in taken]


def row_of(tokenizer: Any, names: Sequence[str], text: Text) -> Arrays:  # noqa: ANN401
    """The inputs for one text as transformers makes them, int64, shape (1, length)."""
    row = tokenizer(
        text.text,
        text.pair,
        return_attention_mask="attention_mask" in names,
        return_token_type_ids="token_type_ids" in names,
    )
    return {name: np.array(row[name], np.int64)[None] for name in names}


def pads_of(tokenizer: Any, config: Any) -> dict[str, int]:  # noqa: ANN401  classes of many
    """The values that fill short texts, by input; none where the model has no token for it."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id
    if pad is None:
        return {}
    return dict(zip(INPUTS, (pad, 0, tokenizer.pad_token_type_id), strict=True))


def padded(rows: Sequence[Arrays], pads: dict[str, int]) -> Arrays:
    """All rows as one batch, each filled on its right to the longest."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    return {
        name: np.concatenate(
            [
                np.pad(
                    row[name],
                    ((0, 0), (0, longest - row[name].shape[1])),
                    constant_values=pads.get(name, 0),
                )
                for row in rows
            ]
        )
        for name in rows[0]
    }


def stated_bounds(folder: ModelFolder, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """How many tokens the model may take, by its files, the largest number first.

    Learned positions may begin after that of padding (RoBERTa), so that there are fewer.
    """
    config = folder.config
    most = min(
        _lengths(folder.path).get("max_seq_length") or _NO_BOUND,
        tokenizer.model_max_length or _NO_BOUND,
    )
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return [most if most < _NO_BOUND else USUAL_TOKENS]
    pad = config.pad_token_id or 0
    return [min(most, count) for count in (positions, positions - pad - 1) if count > 0]


def longest(run: Callable[[Arrays], object], row: Arrays, bounds: Sequence[int]) -> int:
    """The first of some bounds at which a model runs.

    Args:
        run: Calls the model.
        row: Inputs of one text, int64, shape (1, length).
        bounds: Numbers of tokens to try.

    Raises:
        ModelError: It does not even run on that text.
        UsageError: It runs at none.
    """
    run(row)
    reason = ""
    for count in bounds:
        try:
            run({k: v[:, np.arange(count) % v.shape[1]] for k, v in row.items()})
        except ModelError as error:  # there are not so many positions
            reason = str(error)
            continue
        return count
    raise UsageError(
        f"the model must take as many tokens as its files state, got none of {[*bounds]}: {reason} "
        "Correct max_position_embeddings in config.json, or model_max_length in "
        "tokenizer_config.json."
    )
