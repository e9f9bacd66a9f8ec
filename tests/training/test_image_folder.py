"""A folder of pictures: what is found in it, and what is said of one that will not do."""

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digits_folder import write_digits
from marship.errors import DataError, UsageError
from marship.fit.recipe import resolve
from marship.serving import pictures
from recipes import REPOSITORY


@pytest.fixture(scope="module")
def imagefolder() -> ModuleType:
    """training/imagefolder.py."""
    return sys.modules[resolve(str(REPOSITORY / "training/imagefolder.py:load")).__module__]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of a hundred digits, to be damaged."""
    return write_digits(tmp_path / "digits", most=100)


def test_pictures_come_as_squares_of_one_size(imagefolder: ModuleType, digits: Path) -> None:
    """Grey and RGB, of 8 x 8 and 16 x 21, all become RGB squares with the label of their folder."""
    folder = imagefolder.load(digits, 8)
    assert folder.classes == tuple("0123456789")
    assert (len(folder.train), len(folder.test)) == (75, 25)
    assert folder.train.pixels.shape == (75, 8, 8, 3)
    for name, pixels, label in zip(
        folder.train.names, folder.train.pixels, folder.train.labels, strict=True
    ):
        assert name.split("/")[:2] == ["train", folder.classes[label]]
        picture = Image.open(digits / name).convert("RGB")
        if picture.size == (8, 8):
            np.testing.assert_array_equal(pixels, np.asarray(picture))
        else:
            middle = picture.crop((2, 0, 18, 16)).resize((8, 8), Image.Resampling.BOX)
            assert np.abs(pixels - np.asarray(middle, np.float32)).mean() < 10


def test_the_digest_names_content(imagefolder: ModuleType, digits: Path, tmp_path: Path) -> None:
    """A copy has the same digest; one changed pixel, or one picture in another class, has not."""
    whole = imagefolder.load(digits, 8).digest
    copy = shutil.copytree(digits, tmp_path / "copy")
    assert imagefolder.load(copy, 8).digest == whole
    first = min((copy / "train/0").glob("*.png"))
    moved = first.rename(copy / "train/1/moved.png")
    assert imagefolder.load(copy, 8).digest != whole
    moved.rename(first)
    picture = Image.open(first)
    picture.putpixel((0, 0), 77)
    picture.save(first)
    assert imagefolder.load(copy, 8).digest != whole


def test_no_such_folder_is_a_usage_error(imagefolder: ModuleType, tmp_path: Path) -> None:
    """A folder without train and test is refused, with the form that it should have."""
    with pytest.raises(UsageError, match=r"must hold train/<class>/ and test/<class>/.*train or"):
        imagefolder.load(tmp_path, 8)


def test_empty_classes_are_named(imagefolder: ModuleType, digits: Path) -> None:
    """Classes without a picture in one part are named, and hidden files are no pictures."""
    for picture in (digits / "train/3").iterdir():
        picture.unlink()
    (digits / "train/3/.DS_Store").write_bytes(b"x")
    shutil.rmtree(digits / "test/5")
    with pytest.raises(DataError, match=r"got none in train/3, test/5 of"):
        imagefolder.load(digits, 8)


def test_a_single_class_is_refused(imagefolder: ModuleType, digits: Path) -> None:
    """There is nothing to tell apart in one class."""
    for number in range(1, 10):
        shutil.rmtree(digits / f"train/{number}")
        shutil.rmtree(digits / f"test/{number}")
    with pytest.raises(DataError, match="must hold at least 2 classes, got 0"):
        imagefolder.load(digits, 8)


def test_unreadable_files_are_named_and_counted(imagefolder: ModuleType, digits: Path) -> None:
    """The first three are named with their reasons, the others counted, in one line."""
    names = sorted(path for path in (digits / "train/1").iterdir())[:2]
    names[0].write_bytes(names[0].read_bytes()[:60])
    names[1].write_bytes(b"")
    (digits / "test/2/notes.txt").write_text("no picture")
    (digits / "test/3/gone.png").symlink_to("nowhere.png")
    (digits / "train/0/page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(DataError) as caught:
        imagefolder.load(digits, 8)
    text = str(caught.value)
    assert text.startswith("every file must be a picture that can be read, got 5 of 103 that")
    assert "train/0/page.svg (" in text
    assert all(f"train/1/{name.name} (" in text for name in names)
    assert "and 2 more. Repair or remove them." in text
    assert "\n" not in text


def test_leaks_are_found_by_pixels(imagefolder: ModuleType, digits: Path) -> None:
    """A test picture that is in train too, in another class and another format, is named."""
    source = min((digits / "test/4").iterdir())
    Image.open(source).save(digits / "train/7/copy.bmp")
    with pytest.raises(DataError) as caught:
        imagefolder.load(digits, 8)
    text = str(caught.value)
    assert "no picture must be in train and in test, got 1 that are:" in text
    assert f"test/4/{source.name} is train/7/copy.bmp" in text


def test_held_out_pictures_are_a_share_of_each_class(imagefolder: ModuleType, digits: Path) -> None:
    """Kept and held-out places are all places, each class is in both, and a seed repeats them."""
    train = imagefolder.load(digits, 8).train
    kept, held = imagefolder.hold_out(train, 0.25, seed=3)
    assert sorted([*kept, *held]) == list(range(len(train)))
    assert set(train.labels[held]) == set(train.labels[kept]) == set(range(10))
    assert len(held) == pytest.approx(0.25 * len(train), abs=5)
    np.testing.assert_array_equal(imagefolder.hold_out(train, 0.25, seed=3)[1], held)
    assert set(imagefolder.hold_out(train, 0.25, seed=4)[1]) != set(held)


def test_copies_are_held_out_together(imagefolder: ModuleType, digits: Path) -> None:
    """A picture that is twice in its class, under whatever format, is learned or held out."""
    for picture in sorted((digits / "train/2").iterdir()):
        Image.fromarray(pictures.decode(picture.read_bytes()).pixels).save(
            picture.with_suffix(".bmp")
        )
    train = imagefolder.load(digits, 8).train
    for seed in range(5):
        kept, held = (
            {Path(train.names[place]).stem for place in places}
            for places in imagefolder.hold_out(train, 0.3, seed)
        )
        assert held
        assert not kept & held


def kept(imagefolder: ModuleType, pixels: np.ndarray, labels: list[int]) -> Any:
    """Pictures with these pixels and labels, of which none is exactly another."""
    names = tuple(f"train/{label}/{number}" for number, label in enumerate(labels))
    return imagefolder.Pictures(names, pixels, np.array(labels), np.array(names))


def test_near_copies_are_held_out_together(imagefolder: ModuleType) -> None:
    """Darker copies of pictures are on the side of their originals, with any seed."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    darker = (noise * 0.8).astype(np.uint8)
    train = kept(
        imagefolder, np.concatenate([noise, darker]), [0] * 30 + [1] * 30 + [0] * 30 + [1] * 30
    )
    for seed in range(5):
        learned, held = imagefolder.hold_out(train, 0.2, seed)
        assert len(held) == 24
        assert set(held % 60) == set(held[held < 60].tolist())
        assert set(learned) | set(held) == set(range(120))
        assert not imagefolder.near_copies(train.part(held), train.part(learned), seed).any()
    learned, held = np.arange(60), np.arange(60, 120)
    assert imagefolder.near_copies(train.part(held), train.part(learned), 0).all()


def test_a_film_is_not_held_out_whole(imagefolder: ModuleType) -> None:
    """A group far larger than the share stays with what is trained on."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    film = (noise[:1] * np.linspace(0.5, 1, 30)[:, None, None, None]).astype(np.uint8)
    train = kept(imagefolder, np.concatenate([noise[1:], film]), [0] * 69)
    for seed in range(20):
        _, held = imagefolder.hold_out(train, 0.1, seed)
        assert held.max() < 39
        assert len(held) == 4


def test_a_class_of_near_copies_is_divided(imagefolder: ModuleType) -> None:
    """If all pictures of a class are copies of one, some are held out nevertheless."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    film = (noise[:1] * np.linspace(0.5, 1, 10)[:, None, None, None]).astype(np.uint8)
    train = kept(imagefolder, np.concatenate([noise[1:], film]), [0] * 39 + [1] * 10)
    learned, held = imagefolder.hold_out(train, 0.2, 0)
    assert (held >= 39).sum() == 2
    assert (learned >= 39).sum() == 8


def test_a_picture_in_two_classes_is_named(imagefolder: ModuleType, digits: Path) -> None:
    """Nobody could be right on both, in train as in test."""
    for part in ("train", "test"):
        source = min((digits / part / "0").iterdir())
        copy = Path(shutil.copy(source, digits / part / "1"))
        with pytest.raises(DataError) as caught:
            imagefolder.load(digits, 8)
        text = str(caught.value)
        assert text.startswith("a picture must be in one class, got 1 that are in another too: ")
        assert f"{part}/1/{source.name} is {part}/0/{source.name}. Remove" in text
        copy.unlink()


def test_files_in_no_class_are_named(imagefolder: ModuleType, digits: Path) -> None:
    """What lies beside the classes is not passed over in silence."""
    shutil.copy(min((digits / "train/0").iterdir()), digits / "train/stray.png")
    (digits / "test/labels.csv").write_text("x")
    (digits / "test/.DS_Store").write_text("x")
    with pytest.raises(
        DataError, match=r"got 2 that are in none: test/labels.csv, train/stray.png"
    ):
        imagefolder.load(digits, 8)


def test_a_link_to_a_folder_is_named(imagefolder: ModuleType, digits: Path) -> None:
    """A class may be a link; below it none is followed, since it may lead round in a circle."""
    (digits / "train/2").rename(digits / "elsewhere")
    (digits / "train/2").symlink_to(digits / "elsewhere")
    assert len(imagefolder.load(digits, 8).train) == 75
    (digits / "train/2/loop").symlink_to(digits / "train/2")
    with pytest.raises(
        DataError, match=r"got 1 of 101 that cannot: train/2/loop \(Is a directory\)"
    ):
        imagefolder.load(digits, 8)


def test_a_class_of_one_picture_is_named(imagefolder: ModuleType, digits: Path) -> None:
    """Nothing could be held out of it."""
    for picture in sorted((digits / "train/6").iterdir())[1:]:
        picture.unlink()
    train = imagefolder.load(digits, 8).train
    with pytest.raises(
        DataError, match=r"must have 2 different pictures to learn from, got only train/6/"
    ):
        imagefolder.hold_out(train, 0.1, seed=1)
