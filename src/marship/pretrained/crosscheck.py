"""Holds what an archive will respond against `transformers.pipeline()`, on texts or pictures."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marship.contract import Arrays, Contract
from marship.errors import InvalidInputError, MarshipError, ParityError
from marship.pretrained import pictures, texts
from marship.pretrained.folder import CLASSIFY_PICTURES, quiet, read_object
from marship.pretrained.labels import labels_of, scores_of
from marship.serving.model.batch import Batcher
from marship.serving.model.scores import scored
from marship.serving.pictures.processor import Processor
from marship.serving.texts import TEXT_FILE, TOKENIZER_FILE, Text, TextModel, TokenizedText
from marship.serving.texts.answers import CLASSIFY, EXTRACT

Run = Callable[[Arrays], Arrays]
Rows = list[Any]


@dataclass(slots=True)
class Differences:
    """How far responses may be, and are, from those of the pipeline."""

    atol: float
    rtol: float
    largest: float = 0.0

    def add(self, got: Any, want: Any, name: str) -> None:  # noqa: ANN401  numbers of any shape
        """Compare numbers.

        Raises:
            ParityError: They are farther apart than allowed, or of another shape.
        """
        ours, theirs = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if ours.shape != theirs.shape:
            raise ParityError(
                f"{name} must get what transformers.pipeline() gives, got shape "
                f"{list(ours.shape)}, not {list(theirs.shape)}."
            )
        gap = float(np.abs(ours - theirs).max(initial=0.0))
        self.largest = max(self.largest, gap)
        # of a thousand classes all scores may be small
        atol = self.atol * min(1.0, float(np.abs(theirs).max(initial=0.0)))
        if not np.allclose(ours, theirs, rtol=self.rtol, atol=atol):
            raise ParityError(
                f"{name} must get what transformers.pipeline() gives, got numbers {gap:.3g} apart."
            )


def compare_texts(  # noqa: PLR0913, PLR0917  both sides of a comparison
    model: Any,  # noqa: ANN401  a class of many
    tokenizer: Any,  # noqa: ANN401  the same
    samples: Sequence[Text],
    draft: Path,
    contract: Contract,
    run: Run,
) -> dict[str, Any]:
    """Compare the responses to sample texts, all in one batch and each alone.

    Args:
        model: Of transformers.
        tokenizer: Of transformers.
        samples: The texts.
        draft: A folder with text.json and tokenizer.json.
        contract: Of the exported model.
        run: Calls the exported model.

    Returns:
        What the evidence says of it.

    Raises:
        ParityError: They differ.
    """
    about = read_object(draft / TEXT_FILE)
    task, pooling = about["task"], about.get("pooling") or []
    # sentence-transformers pools what its pipeline gives; here the states are compared
    about = about | {"pooling": []} if task == EXTRACT else about
    served = TextModel(about, draft / TOKENIZER_FILE, contract)
    tokens = check_tokens(served, tokenizer, samples)
    together = _outputs(contract, run, [read.inputs for read in tokens])
    alone = [_outputs(contract, run, [read.inputs])[0] for read in tokens]
    gaps = Differences(contract.tolerance.atol, contract.tolerance.rtol)
    top_k = model.config.num_labels if task == CLASSIFY else None
    wanted = _wanted(task, model, tokenizer, [read.text for read in tokens])
    for found in (together, alone):
        for outputs, read, want in zip(found, tokens, wanted, strict=True):
            answer = served.answer(outputs, read, top_k)
            _compare(answer, want, gaps, f"the text {read.text.text!r}")
    return {
        "texts": len(samples),
        "largest_difference": gaps.largest,
        **({"not_compared": f"pooling: {', '.join(pooling)}"} if pooling else {}),
    }


def check_tokens(
    served: TextModel,
    tokenizer: Any,  # noqa: ANN401  a class of many
    samples: Sequence[Text],
) -> list[TokenizedText]:
    """Hold the tokens of the package tokenizers against those of transformers.

    Args:
        served: Reads texts as a worker does.
        tokenizer: Of transformers.
        samples: Texts; those with special tokens in them are compared, too.

    Returns:
        The tokens of the samples.

    Raises:
        ParityError: They differ.
    """
    tokens = [served.read(text) for text in samples]
    controls = []
    for text in texts.controls_of(tokenizer):
        with suppress(InvalidInputError):  # where few tokens are taken
            controls.append(served.read(text))
    for read in (*tokens, *controls):
        want = texts.row_of(tokenizer, [*read.inputs], read.text)
        for name, values in read.inputs.items():
            if values.tolist() != want[name].tolist():
                raise ParityError(
                    f"{name} of {read.text.text!r} must be those of {type(tokenizer).__name__}, "
                    f"got {values[0].tolist()}, not {want[name][0].tolist()}."
                )
    return tokens


def compare_pictures(
    model: Any,  # noqa: ANN401  a class of many
    processor: Any,  # noqa: ANN401  the same
    contract: Contract,
    run: Run,
) -> dict[str, Any]:
    """Compare the scores of sample pictures; see `compare_texts`."""
    from PIL import Image

    names, kind = labels_of(model.config), scores_of(model.config)
    with quiet():
        classify = _pipeline(CLASSIFY_PICTURES, model=model, image_processor=processor)
        wanted = [
            classify(Image.fromarray(pixels), top_k=len(names))
            for pixels in pictures.samples().values()
        ]
    return compare_scores(wanted, pictures.settings_of(processor), names, kind, contract, run)


def compare_scores(  # noqa: PLR0913, PLR0917  both sides of a comparison
    wanted: Sequence[Rows],
    ours: Processor,
    names: Sequence[str],
    kind: str,
    contract: Contract,
    run: Run,
) -> dict[str, Any]:
    """Compare the scores of sample pictures with those wanted: rows with `label` and `score`."""
    samples = pictures.samples()
    taken, given = contract.inputs[0].name, contract.outputs[0].name
    parts = [{taken: ours(pixels)[None]} for pixels in samples.values()]
    gaps = Differences(contract.tolerance.atol, contract.tolerance.rtol)
    together, alone = (
        _outputs(contract, run, parts),
        [_outputs(contract, run, [p])[0] for p in parts],
    )
    for found in (together, alone):
        for name, outputs, want in zip(samples, found, wanted, strict=True):
            scores = scored(outputs[given][0], kind)
            _compare(rows_of(scores, names), want, gaps, name)
    return {"pictures": len(samples), "largest_difference": gaps.largest}


def rows_of(scores: Any, names: Sequence[str]) -> Rows:  # noqa: ANN401  an array
    """Scores by label."""
    return [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]


def _outputs(contract: Contract, run: Run, parts: Sequence[Arrays]) -> list[Arrays]:
    """The outputs of each part, joined as a worker joins requests.

    Raises:
        MarshipError: The model does not take one of them.
    """
    results = Batcher(contract, run)(parts)
    for result in results:
        if isinstance(result, MarshipError):
            raise result
    return [result for result in results if not isinstance(result, MarshipError)]


def _pipeline(task: str, **parts: Any) -> Any:  # noqa: ANN401  it has types for literal tasks alone
    import transformers

    make: Any = transformers.pipeline
    return make(task, device="cpu", **parts)


def _wanted(task: str, model: Any, tokenizer: Any, samples: Sequence[Text]) -> Rows:  # noqa: ANN401
    """What `pipeline()` gives for each text."""
    with quiet():
        call = _pipeline(task, model=model, tokenizer=tokenizer)
        if task != CLASSIFY:
            return [call(text.text) for text in samples]
        return [
            call({"text": t.text, **({} if t.pair is None else {"text_pair": t.pair})}, top_k=None)
            for t in samples
        ]


def _compare(got: Any, want: Any, gaps: Differences, name: str) -> None:  # noqa: ANN401
    """Compare two answers: rows with numbers and names, or numbers alone.

    Rows of a classifier are compared by label: nearly equal scores may stand in another order.

    Raises:
        ParityError: They differ.
    """
    if not _is_rows(want):
        gaps.add(got, want, name)
        return
    if want and "label" in want[0]:
        got, want = (sorted(rows, key=lambda row: str(row["label"])) for rows in (got, want))
    if [_named(row) for row in got] != [_named(row) for row in want]:
        raise ParityError(
            f"{name} must get what transformers.pipeline() gives, got {got!r:.200}, not "
            f"{want!r:.200}."
        )
    gaps.add([row["score"] for row in got], [row["score"] for row in want], name)


def _is_rows(value: Any) -> bool:  # noqa: ANN401  any answer
    return isinstance(value, list) and (not value or isinstance(value[0], dict))


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its score."""
    return {
        key: int(v) if isinstance(v, np.integer) else v for key, v in row.items() if key != "score"
    }
