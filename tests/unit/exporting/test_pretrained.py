"""Models of transformers exported from a folder: a worker answers what `pipeline()` does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

import marship
from marship.errors import DataError, UsageError
from marship.pretrained import pictures, texts
from marship.pretrained.folder import ModelFolder
from marship.serving.message import JSON_TYPE, Request
from marship.serving.placement import Placement
from marship.storage import write_json
from pretrained_folders import byte_pairs, word_pieces, write_pictures, write_texts
from workers import load_module

pytestmark = pytest.mark.usefixtures("torchlib_read_once")

QUICK = marship.ExportSettings(proof_seconds=0.5)
TEXTS = [
    "The film was wonderful",
    "No",
    "Anna Schmidt moved to a small company in Lisbon, and nobody answered her letter last year!",
    "",
    "xylophone \U0001f600 ÄÖ",
]
CLASSIFY, TAG, EXTRACT = "text-classification", "token-classification", "feature-extraction"
MULTI = {"num_labels": 4, "problem_type": "multi_label_classification"}
REGRESSION = {"num_labels": 1, "problem_type": "regression"}
ENTITIES = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "num_labels": 3}
KINDS: dict[str, tuple[str, str, Callable[[], Any], dict[str, Any]]] = {
    "bert": ("Bert", CLASSIFY, word_pieces, {"num_labels": 3}),
    "distilbert, regression": (
        "DistilBert",
        CLASSIFY,
        word_pieces,
        {**REGRESSION, "hidden_dim": 24},
    ),
    "roberta, several labels": ("Roberta", CLASSIFY, byte_pairs, MULTI),
    "deberta": ("DebertaV2", CLASSIFY, word_pieces, {"num_labels": 2, "relative_attention": True}),
    "modernbert": (
        "ModernBert",
        CLASSIFY,
        word_pieces,
        {"num_labels": 2, "num_hidden_layers": 2},  # the first attends to all, the second nearby
    ),
    "entities": ("Bert", TAG, word_pieces, ENTITIES),
    "entities of bytes": ("Roberta", TAG, byte_pairs, ENTITIES),
    "states": ("Roberta", EXTRACT, byte_pairs, {}),
}
HEADS = {CLASSIFY: "ForSequenceClassification", TAG: "ForTokenClassification", EXTRACT: "Model"}


def served(run_dir: Path, handler: str = "text_handler", **settings: Any) -> Any:
    """The handler of a run folder, as a worker loads it."""
    kind = "".join(part.title() for part in handler.split("_"))
    found = getattr(load_module(handler), kind)()
    found.load(Placement(folder=run_dir, name="m", config={"handler": settings}))
    return found


def answer(handler: Any, value: object) -> Any:
    """The response to a JSON request."""
    reply = handler.respond(json.dumps(value).encode(), "application/json")
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def same(got: Any, want: Any) -> bool:
    """Whether two answers hold the same names, and numbers within rounding."""
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    if isinstance(want, list) and want and not isinstance(want[0], int | float):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, str):
        return bool(got == want)
    return np.allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_worker_answers_as_the_pipeline(name: str, tmp_path: Path) -> None:
    """Texts of any length, in one batch and each alone; empty ones and unknown characters, too."""
    kind, task, tokenizer, settings = KINDS[name]
    folder = write_texts(tmp_path / "hf", kind, HEADS[task], tokenizer, **settings)
    run_dir = tmp_path / "run"
    done = marship.export(f"hf:{folder}", QUICK, out=run_dir)
    assert done.contract.batch_axis == "batch"
    assert all(spec.pad_value is not None for spec in done.contract.inputs)
    handler = served(run_dir)
    pipeline: Any = transformers.pipeline
    want = [pipeline(task, model=str(folder), device="cpu")(text) for text in TEXTS]
    if task == CLASSIFY:
        want = [rows[0] for rows in want]
    assert same(answer(handler, {"text": TEXTS}), want)
    assert all(same(answer(handler, text), one) for text, one in zip(TEXTS, want, strict=True))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a classifier that 60 tokens fit."""
    folder = tmp_path_factory.mktemp("bert")
    source = write_texts(folder / "hf", "Bert", HEADS[CLASSIFY], max_position_embeddings=60)
    marship.export(f"hf:{source}", QUICK, out=folder / "run")
    return folder / "run"


def test_pairs_and_several_labels_are_those_of_the_pipeline(bert: Path) -> None:
    """Also in a list, beside single texts."""
    pair = {"text": "A man is asleep.", "text_pair": "Nobody is awake."}
    pipeline: Any = transformers.pipeline
    call = pipeline(CLASSIFY, model=str(bert.parent / "hf"), device="cpu")
    handler = served(bert)
    assert same(answer(handler, {**pair, "top_k": 2}), call(pair, top_k=None))
    lists = {"text": [pair["text"]] * 2, "text_pair": [pair["text_pair"], "No"]}
    assert same(answer(handler, lists)[0], call(pair))
    assert same(answer(handler, [pair, "No"]), [call(pair), *call("No")])


def test_a_text_is_taken_as_plain_text(bert: Path) -> None:
    """text/plain in UTF-8 gets what the JSON string gets."""
    handler = served(bert)
    reply = handler.respond("Ein Übel".encode(), "text/plain; charset=utf-8")
    assert json.loads(reply.body) == answer(handler, "Ein Übel")


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    """Some editors put it before a text; most tokenizers read it as a character."""
    assert load_module("text_handler")._plain("\ufeffNo".encode()) == "No"


def test_instances_get_predictions(bert: Path) -> None:
    """KServe v1: texts or objects, each with its prediction."""
    handler = served(bert)
    pair = {"text": "No", "text_pair": "A man"}
    assert answer(handler, {"instances": ["No", pair]}) == {
        "predictions": answer(handler, ["No", pair])
    }


def test_a_form_gets_the_header_to_send(bert: Path) -> None:
    """`curl -d text=Good.`: Content-Type is what is wrong."""
    reply = served(bert).respond(b"text=Good.", "application/x-www-form-urlencoded")
    assert reply.status == 415
    assert "Send the header Content-Type: application/json" in json.loads(reply.body)["message"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "no " * 70}, "text must have from 1 to 60 tokens, got 72. Send a shorter one"),
        (["No", "no " * 70], "text 2 must have from 1 to 60 tokens"),
        ("a" * 2401, "text must have at most 2,400 characters, for a model that takes 60 tokens"),
        ({"texts": "No"}, "an object with text"),
        ({"text": 3}, "text must be a string"),
        ([], "from 1 to 32 texts, got 0"),
        ({"instances": "No"}, "instances must be a list of texts, got 'No'"),
        (["No"] * 33, "from 1 to 32 texts, got 33"),
        ({"text": ["No"], "text_pair": "No"}, "text_pair must be a list as long as text, 1"),
        ({"text": "No", "top_k": 0}, "top_k must be a whole number from 1, got 0"),
        (None, "text must be a string"),
    ],
)
def test_a_request_that_cannot_be_answered_is_4xx(bert: Path, value: object, message: str) -> None:
    """The message says which text is wrong, and the bound."""
    reply = served(bert).respond(json.dumps(value).encode(), "application/json")
    assert reply.status in (400, 413)
    assert message in json.loads(reply.body)["message"]


@pytest.mark.parametrize(
    ("body", "kind"), [(b"No", "text/plain"), (b'"No"', JSON_TYPE), (b'{"text": "No"}', JSON_TYPE)]
)
def test_a_query_says_how_many_labels(bert: Path, body: bytes, kind: str) -> None:
    """For any body; one that says it itself wins, and what is no number is refused."""
    handler = served(bert)

    def asked(body: bytes, top_k: str) -> Any:
        ((reply,), _) = handler.reply([Request(body, kind, fields={"top_k": top_k})])
        return json.loads(reply.body)

    assert asked(body, "2") == answer(handler, {"text": "No", "top_k": 2})
    assert asked(body, "9" * 40) == asked(body, "0002")
    for value in ("0", "-1", "two", ""):
        assert "top_k must be a whole number from 1" in asked(body, value)["message"]
    if body.startswith(b"{"):
        assert len(asked(b'{"text": "No", "top_k": 1}', "2")) == 1


def test_bytes_that_are_no_text_are_400(bert: Path) -> None:
    """Neither UTF-8 nor JSON."""
    handler = served(bert)
    assert handler.respond(b"\xff\xfe", "text/plain").status == 400
    assert handler.respond(b'"\\ud800"', "application/json").status == 400
    assert handler.respond(b"", "application/json").status == 400


def test_long_texts_are_cut_where_that_is_set(bert: Path) -> None:
    """As the tokenizer of transformers cuts them."""
    pipeline: Any = transformers.pipeline
    call = pipeline(CLASSIFY, model=str(bert.parent / "hf"), device="cpu")
    want = call("no film " * 70, truncation=True, max_length=60)
    assert same(answer(served(bert, truncate=True), "no film " * 70), want[0])


def test_a_folder_is_up_to_date_until_it_changes(bert: Path, tmp_path: Path) -> None:
    """A second export is kept; one of other weights is not."""
    source, out = bert.parent / "hf", shutil.copytree(bert, tmp_path / "run")
    assert not marship.export(f"hf:{source}", QUICK, out=out).fresh
    weights = load_file(source / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    try:
        assert marship.export(f"hf:{source}", QUICK, out=out).fresh
    finally:
        weights["classifier.bias"] -= 1
        save_file(weights, source / "model.safetensors", {"format": "pt"})


def test_bounds_of_ones_own_are_those_of_the_samples(bert: Path, tmp_path: Path) -> None:
    """`--bounds length=1:16`: samples that are longer are left out."""
    settings = marship.ExportSettings(proof_seconds=0.5, bounds=("length=1:16",))
    done = marship.export(f"hf:{bert.parent / 'hf'}", settings, out=tmp_path)
    assert done.contract.bounds["length"] == (1, 16)
    assert 1 <= done.report["pipeline"]["texts"] < len(texts.SAMPLES)


def write_pooling(folder: Path, *kinds: str, **modes: bool) -> None:
    """What sentence-transformers writes beside a model."""
    names = ["Transformer", "Pooling", *kinds]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **modes})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 50})


def test_states_are_pooled_as_sentence_transformers_pools_them(tmp_path: Path) -> None:
    """The mean of all tokens, and then of length 1; the bound is max_seq_length."""
    folder = write_texts(tmp_path / "hf", "Bert", "Model")
    write_pooling(folder, "Normalize", pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    done = marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")
    assert done.contract.bounds["length"] == (1, 50)
    pipeline: Any = transformers.pipeline
    call = pipeline(EXTRACT, model=str(folder), device="cpu")
    want = [np.mean(call(text)[0], 0) for text in TEXTS]
    got = answer(served(tmp_path / "run"), TEXTS)
    assert np.allclose(got, [v / np.linalg.norm(v) for v in want], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "modes", "message"),
    [
        (("Dense",), {"pooling_mode_mean_tokens": True}, "got Transformer, Pooling, Dense"),
        ((), {"pooling_mode_weightedmean_tokens": True}, "got pooling_mode_weightedmean_tokens"),
        ((), {}, "got none"),
    ],
)
def test_pooling_that_is_not_applied_is_refused(
    tmp_path: Path, kinds: tuple[str, ...], modes: dict[str, bool], message: str
) -> None:
    """Embeddings without it would be others."""
    write_pooling(tmp_path, *kinds, **modes)
    with pytest.raises(UsageError, match=message):
        texts.pooling_of(tmp_path)


def test_poolings_are_joined_in_the_order_of_sentence_transformers(tmp_path: Path) -> None:
    """First cls, then max, then mean, whatever the order in the file."""
    write_pooling(tmp_path, pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)
    assert texts.pooling_of(tmp_path).names == ("cls", "mean")


CROPPED = {
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
}
"""Settings of an image processor."""


def test_a_worker_labels_pictures_as_the_pipeline(tmp_path: Path) -> None:
    """The names and scores of all labels, best first."""
    folder = write_pictures(tmp_path / "hf", CROPPED, num_labels=5)
    marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")
    handler = served(tmp_path / "run", "image_handler")
    pipeline: Any = transformers.pipeline
    call = pipeline("image-classification", model=str(folder), device="cpu")
    for name in pictures.SAMPLES:
        file = tmp_path / "run" / name
        reply = json.loads(handler.respond(file.read_bytes(), "image/png").body)
        got = [{"label": row["label"], "score": row["probability"]} for row in reply["top"]]
        assert same(got, [dict(sorted(row.items())) for row in call(str(file), top_k=5)])


def rewritten(folder: Path, **settings: object) -> Path:
    """The folder with other settings in config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | settings
    write_json(folder / "config.json", {k: v for k, v in config.items() if v is not None})
    return folder


def test_a_task_without_weights_is_refused(tmp_path: Path) -> None:
    """A classifier's head would be random."""
    folder = write_texts(tmp_path / "hf", "Bert", "Model")
    with pytest.raises(UsageError, match=r"got none for classifier\.bias, classifier\.weight"):
        marship.export(f"hf:{folder}", QUICK, task=CLASSIFY, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_states_of_a_model_with_another_head_are_served(tmp_path: Path) -> None:
    """`--task feature-extraction` of a masked language model, whose task is none that is served."""
    folder = write_texts(tmp_path / "hf", "Bert", "ForMaskedLM")
    with pytest.raises(UsageError, match="got BertForMaskedLM: one whose task is not known"):
        marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")
    done = marship.export(f"hf:{folder}", QUICK, task=EXTRACT, out=tmp_path / "run")
    assert [spec.name for spec in done.contract.outputs] == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["GPT2LMHeadModel"], "a model that generates, which is not exported"),
        (["T5ForConditionalGeneration"], "a model that generates"),
        (["BertForQuestionAnswering"], "one whose task is not known"),
        (None, "got none: one whose task is not known"),
    ],
)
def test_other_tasks_are_refused_with_those_that_are_served(
    tmp_path: Path, architectures: list[str] | None, message: str
) -> None:
    """The message names the tasks."""
    write_json(tmp_path / "config.json", {"architectures": architectures})
    with pytest.raises(UsageError, match=f"text-classification, .*{message}"):
        ModelFolder.at(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """One that transformers makes then knows no word: all texts would be alike."""
    folder = write_texts(tmp_path / "hf", "Bert", HEADS[CLASSIFY])
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match=r"must hold a tokenizer, such as tokenizer\.json"):
        marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    """A model that transformers does not define is refused, with what to do instead."""
    folder = write_texts(tmp_path / "hf", "Bert", HEADS[CLASSIFY])
    (folder / "own.py").write_text("raise SystemExit('run')\n")
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    rewritten(folder, model_type="own", auto_map=auto)
    with pytest.raises(UsageError, match="code of its own, which is not run"):
        marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")


def test_what_is_no_folder_of_transformers_is_refused(tmp_path: Path) -> None:
    """A name of the hub, a folder without config.json, and one that cannot be read."""
    with pytest.raises(UsageError, match="Nothing is downloaded"):
        marship.export("hf:bert-base-uncased")
    with pytest.raises(UsageError, match=r"must hold config\.json"):
        marship.export(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="must hold an object"):
        marship.export(f"hf:{tmp_path}")
    with pytest.raises(UsageError, match="task must be left out"):
        marship.export("model.py:build", example="a.npz", task=CLASSIFY)
    with pytest.raises(UsageError, match="example must be left out"):
        marship.export(f"hf:{tmp_path}", example="a.npz")


def test_a_model_that_reads_padding_runs_texts_of_different_lengths_apart(tmp_path: Path) -> None:
    """Without a mask padding counts; each text gets what it gets alone."""

    def without_mask() -> Any:
        tokenizer = word_pieces()
        tokenizer.model_input_names = ["input_ids"]
        return tokenizer

    folder = write_texts(tmp_path / "hf", "Bert", HEADS[CLASSIFY], without_mask)
    done = marship.export(f"hf:{folder}", QUICK, out=tmp_path / "run")
    assert [spec.pad_value for spec in done.contract.inputs] == [None]
    handler = served(tmp_path / "run")
    assert same(answer(handler, TEXTS), [answer(handler, text) for text in TEXTS])
