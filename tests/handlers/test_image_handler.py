"""The image handler: pictures in, labels out."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import photos
from colours import pack_colours
from marship.errors import LoadError
from marship.serving import pictures
from marship.serving.message import Request
from photos import colour, encode
from workers import Worker, load_module

Start = Callable[[Path, type], Worker]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that sees colours."""
    return pack_colours(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def seer(archive: Path, worker: Start) -> Worker:
    """A worker of it."""
    return worker(archive, load_module("image_handler").ImageHandler)


def test_a_picture_is_labelled(seer: Worker) -> None:
    """The best label, the k best with probabilities, the tags, size and format."""
    (answer,) = seer({"body": colour("red")}, content_type="application/json")
    shares = np.exp(np.array([255, 0, 0]) / 32)
    shares /= shares.sum()
    top = [
        {"label": label, "probability": pytest.approx(share, abs=1e-6)}
        for label, share in zip(("red", "green", "blue"), shares, strict=True)
    ]
    assert answer.status == 200
    assert answer.json() == {
        **top[0],
        "top": top,
        "tags": ["red"],
        "width": 20,
        "height": 10,
        "format": "png",
    }


def test_tags_are_the_labels_over_the_threshold(seer: Worker) -> None:
    """Two of three here, the better one first; none where all are below."""
    mixed, grey = seer(
        {"body": encode(Image.new("RGB", (9, 9), (200, 0, 210)), "PNG")},
        {"body": encode(Image.new("RGB", (9, 9), (90, 90, 90)), "PNG")},
    )
    assert mixed.json()["tags"] == ["blue", "red"]
    assert grey.json()["tags"] == ["red", "green", "blue"]  # a third each, over 0.3


def test_a_label_at_the_threshold_is_a_tag(tmp_path: Path, worker: Start) -> None:
    """Three labels of a third each, and the threshold that number."""
    mar = pack_colours(tmp_path, option=(f"tag_threshold={float(np.float32(1 / 3))!r}",))
    seer = worker(mar, load_module("image_handler").ImageHandler)
    (answer,) = seer({"body": encode(Image.new("RGB", (9, 9), (90, 90, 90)), "PNG")})
    assert answer.json()["tags"] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("k", "count"), [(b"1", 1), ("2", 2), (3, 3), (b"99999999999", 3), (b"0" * 20 + b"2", 2)]
)
def test_k_is_how_many_labels_come(seer: Worker, k: object, count: int) -> None:
    """A field of the form; never more than there are."""
    (answer,) = seer({"body": colour("lime"), "k": k})
    assert [row["label"] for row in answer.json()["top"]][:1] == ["green"]
    assert len(answer.json()["top"]) == count


@pytest.mark.parametrize("k", [b"0", b"-1", b"1.5", b"", b"x", b"\xb2", b"\xff"])
def test_a_wrong_k_is_400(seer: Worker, k: bytes) -> None:
    """And says what it was."""
    (answer,) = seer({"body": colour("red"), "k": k})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
    assert answer.json()["message"].startswith("k must be a whole number from 1, got")


def test_k_is_read_once(seer: Worker) -> None:
    """The second one would be taken for a picture."""
    (answer,) = seer({"body": colour("red"), "k": b"1", "k#2": b"2"})
    assert (answer.status, answer.json()["message"]) == (400, "k must be sent once.")


def test_the_bytes_tell_the_format_whatever_the_header_says(seer: Worker) -> None:
    """A PNG as image/jpeg, a JPEG as text, a GIF as JSON."""
    for kind, lie in (("PNG", "image/jpeg"), ("JPEG", "text/plain"), ("GIF", "application/json")):
        (answer,) = seer({"body": colour("blue", kind=kind)}, content_type=lie)
        assert (answer.json()["label"], answer.json()["format"]) == ("blue", kind.lower())


def test_sizes_mix_in_a_batch(seer: Worker) -> None:
    """Pictures of five sizes, one twice: each gets what it gets alone."""
    files = [
        colour("red", 20, 10),
        colour("lime", 10, 20),
        colour("blue", 20, 10),
        colour("red", 1, 1),
        encode(photos.photo(320, 270), "JPEG"),
        encode(photos.photo(40, 30), "WEBP"),
    ]
    together = [answer.json() for answer in seer(*({"body": data} for data in files))]
    alone = [seer({"body": data})[0].json() for data in files]
    assert together == alone
    assert [answer["width"] for answer in together] == [20, 10, 20, 1, 320, 40]


def test_a_panorama_gives_the_same_as_its_middle(seer: Worker) -> None:
    """The model looks at the middle square, so the ends need not reach it."""
    image = Image.new("RGB", (401, 20), "red")
    image.paste("blue", (190, 0, 211, 20))
    (answer,) = seer({"body": encode(image, "PNG")})
    assert answer.json()["label"] == "blue"
    assert (answer.json()["width"], answer.json()["height"]) == (401, 20)


def test_several_pictures_are_predicted_each_by_itself(seer: Worker) -> None:
    """By name, in order; a broken one has its code and harms none, the last included."""
    (answer,) = seer(
        {
            "first": colour("red"),
            "broken": colour("red")[:60],
            "text": b"hello",
            "large": photos.claim("PNG", 50_000, 50_000),
            "defect": colour("red", 50, 50),
            "last": colour("blue", 7, 9, "BMP"),
            "k": b"1",
        }
    )
    rows = answer.json()["pictures"]
    assert answer.status == 200
    assert [row.get("label", row.get("code")) for row in rows] == [
        "red",
        "malformed",
        "unsupported_media",
        "too_large",
        "internal",
        "blue",
    ]
    assert [row["name"] for row in rows] == ["first", "broken", "text", "large", "defect", "last"]
    assert all(row["message"] for row in rows[1:5])
    assert "Gather" not in rows[4]["message"]  # ONNX Runtime's words are for the log
    assert len(rows[5]["top"]) == 1


def test_form_files_of_one_name_are_all_predicted(seer: Worker) -> None:
    """As the buffered transport hands them over: a browser's file field sends such a form."""
    request = Request(colour("red"), name="file", fields={"file#2": colour("blue")})
    (reply,), _ = seer.handler.reply([request])
    rows = json.loads(reply.body)["pictures"]
    assert [(row["name"], row["label"]) for row in rows] == [("file", "red"), ("file#2", "blue")]


def test_too_many_pictures_are_413(seer: Worker) -> None:
    """33 in one request; 32 are answered."""
    files = {f"p{i}": colour("red") for i in range(33)}
    (answer,) = seer(files)
    assert (answer.status, answer.json()["code"]) == (413, "too_large")
    files.pop("p0")
    (answer,) = seer({**files, "k": b"1"})
    assert len(answer.json()["pictures"]) == 32


BAD: dict[str, tuple[Any, int, str]] = {
    "nothing": (b"", 400, "malformed"),
    "text": (b"hello", 415, "unsupported_media"),
    "parsed JSON": ({"a": 1}, 415, "unsupported_media"),
    "SVG": (photos.SVG, 415, "unsupported_media"),
    "HEIC": (photos.HEIC, 415, "unsupported_media"),
    "a truncated JPEG": (encode(photos.photo(), "JPEG")[:-100], 400, "malformed"),
    "a truncated PNG": (encode(photos.photo(), "PNG")[:-100], 400, "malformed"),
    "a truncated WebP": (encode(photos.photo(), "WEBP")[:-100], 400, "malformed"),
    "a bomb": (photos.claim("PNG", 50_000, 50_000), 413, "too_large"),
    "a bomb of JPEG": (photos.claim("JPEG", 50_000, 50_000), 413, "too_large"),
    "a GIF that ends early": (photos.animation()[:-400], 400, "malformed"),
    "a defect": (colour("red", 50, 50), 500, "internal"),
    "probabilities that are no numbers": (colour("red", 60, 60), 500, "internal"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_harms_no_other_of_its_batch(seer: Worker, case: str) -> None:
    """It gets its status, code and what to send; those before and behind it get answers."""
    body, status, code = BAD[case]
    before, bad, behind = seer({"body": colour("red")}, {"body": body}, {"body": colour("blue")})
    assert (before.json()["label"], behind.json()["label"]) == ("red", "blue")
    assert (bad.status, bad.json()["code"]) == (status, code)
    assert status == 500 or "multipart form" in bad.json()["expects"]


@pytest.mark.parametrize("case", BAD)
def test_no_picture_waits_for_the_garbage_collector(seer: Worker, case: str) -> None:
    """An error holds the calls that it came through, and they hold the decoded picture."""
    body, _, _ = BAD[case]
    seer({"body": body}, {"a": body, "b": body})  # what is made once is made
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.disable()
        seer({"body": body}, {"a": body, "b": body})
        gc.collect()
        kept = [thing for thing in gc.garbage if isinstance(thing, (Image.Image, np.ndarray))]
    finally:
        gc.enable()
        gc.set_debug(0)
        gc.garbage.clear()
    assert not kept


def test_a_batch_that_takes_too_long_to_decode_ends_before_its_worker(
    tmp_path: Path, worker: Start
) -> None:
    """TorchServe kills a worker that is silent for responseTimeout; the pictures before count."""
    mar = pack_colours(tmp_path, response_timeout_s=1)
    seer = worker(mar, load_module("image_handler").ImageHandler)
    slow = encode(Image.new("RGB", (7000, 7000), "red"), "PNG", compress_level=1)
    began = time.monotonic()
    (answer, late) = seer({f"p{i}": slow for i in range(32)}, {"body": colour("red")})
    rows = answer.json()["pictures"]
    assert (rows[0]["label"], rows[-1]["code"]) == ("red", "too_large")
    assert "must be decoded within 0.5 s" in rows[-1]["message"]
    assert late.status == 413
    assert seer({"body": colour("red")})[0].json()["label"] == "red"
    assert time.monotonic() - began < 15  # all of it would take over 30 s


def test_an_animation_is_labelled_by_its_first_frame(seer: Worker) -> None:
    """Red, though green and blue follow."""
    (answer,) = seer({"body": photos.animation()})
    assert (answer.json()["label"], answer.json()["format"]) == ("red", "gif")


def test_k_alone_is_400(seer: Worker) -> None:
    """A form without a picture."""
    (answer,) = seer({"k": b"3"})
    assert (answer.status, answer.json()["code"]) == (400, "malformed")


def test_model_config_sets_threshold_and_k(tmp_path: Path, worker: Start) -> None:
    """`handler:` there overrides what the recipe wrote."""
    mar = pack_colours(tmp_path, option=("tag_threshold=0.34", "k=2"))
    (answer,) = worker(mar, load_module("image_handler").ImageHandler)(
        {"body": encode(Image.new("RGB", (9, 9), (90, 90, 90)), "PNG")}
    )
    assert answer.json()["tags"] == []
    assert len(answer.json()["top"]) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "whole number from 1, got 0"),
        ({"k": "3"}, "'3'"),
        ({"k": True}, "True"),
        ({"tag_threshold": 1.5}, "from 0 to 1, got 1.5"),
        ({"tag_threshold": "high"}, "'high'"),
        ({"tag_threshold": float("nan")}, "nan"),
        ({"treshold": 0.3}, "nothing but k and tag_threshold"),
        (["k"], "nothing but k and tag_threshold"),
    ],
)
def test_a_wrong_setting_is_not_served(
    archive: Path, worker: Start, settings: object, words: str
) -> None:
    """The worker says which one, and does not load."""
    kind = load_module("image_handler").ImageHandler

    class Configured(kind):  # type: ignore[misc, valid-type]
        def prepare(self) -> None:
            """As if model-config.yaml said so."""
            self.config["handler"] = settings
            super().prepare()

    with pytest.raises(LoadError, match=words):
        worker(archive, Configured)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("{}", "must give labels, side, crop"),
        ("[1]", "must give labels"),
        ('{"labels": ["a"], "side": 224, "crop": 0.875, "tag_threshold": 0.3}', "of the 1 labels"),
        ('{"labels": ["a"], "side": 224, "crop": 0, "tag_threshold": 0.3}', "must give labels"),
    ],
)
def test_a_wrong_picture_json_is_not_served(
    archive: Path, worker: Start, about: str, words: str
) -> None:
    """Labels must be as many as the model's outputs."""
    kind = load_module("image_handler").ImageHandler

    class Damaged(kind):  # type: ignore[misc, valid-type]
        def prepare(self) -> None:
            """Damage the asset first."""
            (self.folder / "picture.json").write_text(about)
            super().prepare()

    with pytest.raises(LoadError, match=words):
        worker(archive, Damaged)


def test_another_kind_of_model_is_not_served(
    linear_onnx: Path, tmp_path: Path, worker: Start
) -> None:
    """One that takes floats of one axis is told so."""
    from marship.packaging.step import PackageSettings, package

    about = tmp_path / "picture.json"
    about.write_text('{"labels": ["a", "b"], "side": 28, "crop": 0.875, "tag_threshold": 0.3}')
    mar = package(linear_onnx, PackageSettings(model_store=tmp_path / "s", asset=(str(about),)))
    with pytest.raises(LoadError, match=r"must take uint8\[batch, height, width, 3\]"):
        worker(mar, load_module("image_handler").ImageHandler)


@pytest.mark.parametrize("step", ["decode", "read"])
def test_an_unforeseen_fault_is_one_pictures_own(
    seer: Worker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """In decoding and in reading the output: the other pictures of the form are labelled."""
    if step == "decode":
        decode = pictures.decode

        def odd(body: bytes, shortest: int) -> Any:
            if body == colour("blue"):
                raise KeyError("secret")
            return decode(body, shortest)

        monkeypatch.setattr(pictures, "decode", odd)
    else:
        seen = seer.handler._seen

        def unseen(output: Any, k: int) -> Any:
            found = seen(output, k)
            return found if found["label"] != "blue" else {}["secret"]

        monkeypatch.setattr(seer.handler, "_seen", unseen)
    alone, form = seer(
        {"body": colour("blue")}, {"a": colour("red"), "b": colour("blue"), "c": colour("lime")}
    )
    assert (alone.status, form.status) == (500, 200)
    rows = form.json()["pictures"]
    assert [row.get("label", row.get("code")) for row in rows] == ["red", "internal", "green"]
    assert b"secret" not in alone.body + form.body
