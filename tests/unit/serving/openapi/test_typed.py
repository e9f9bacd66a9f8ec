"""Typed clients: packages that mypy takes, and that a real server answers."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hosted import TOKEN, Hosted
from kinds import NAMES, hosting
from marship.cli import app
from marship.client.typed.package import source, write
from marship.errors import UsageError
from marship.serving.openapi.document import ServedModel, document
from marship.serving.openapi.interface import ENCRYPTED, BodyForm, Interface, opaque
from photos import encode, photo
from whistles import long_whistle, wav

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """A host of a model of each kind."""
    with hosting(tmp_path_factory.mktemp("kinds")) as found:
        yield found


@pytest.fixture(scope="module")
def packages(host: Hosted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a client of each model, which can be imported."""
    folder = tmp_path_factory.mktemp("clients")
    for name in NAMES:
        words = (name, "--url", address(host), "--token", TOKEN, "--out", folder / f"pkg_{name}")
        done = CliRunner().invoke(app, ["client", *map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        made = json.loads(done.stdout)
        assert (made["name"], made["version"], len(made["files"])) == (name, "1.0", 5)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def address(host: Hosted) -> str:
    """Where clients connect."""
    return f"http://{host.address[0]}:{host.address[1]}"


def module(packages: Path, name: str) -> ModuleType:
    """A client's package."""
    assert (packages / f"pkg_{name}").is_dir()
    return importlib.import_module(f"pkg_{name}")


def test_mypy_takes_them(packages: Path) -> None:
    """With --strict, without a single ignore; ruff finds no name that is missing or unused."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", packages / "cache",
         *(f"pkg_{name}" for name in NAMES)],
        cwd=packages, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--select", "F", packages],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    text = "".join(path.read_text() for path in packages.glob("pkg_*/*.py"))
    assert "type: ignore" not in text
    assert "import marship" not in text


def test_tensors_in_and_out(host: Hosted, packages: Path) -> None:
    """Arrays of the model's types; one that would lose values is refused here, others there."""
    made = module(packages, "lin")
    with made.Client(address(host), TOKEN) as client:
        row = np.array([[1, 2, 3]], np.float32)
        for _ in range(2):
            found = client.predict(made.Inputs(input=row))
            assert found.output.dtype == np.float32
            assert found.output.tolist() == [[16, 22]]
        many = client.predict(made.Inputs(input=np.tile(row, (500, 1))))
        assert many.output.shape == (500, 2)
        with pytest.raises(TypeError, match="input must be float32, got complex128"):
            client.predict(made.Inputs(input=row.astype(complex)))
        with pytest.raises(made.ServiceError) as refused:
            client.predict(made.Inputs(input=row[:, :2]))
        assert (refused.value.status, refused.value.code) == (400, "invalid_input")
        assert client.predict(made.Inputs(input=row)).output.tolist() == [[16, 22]]
    with made.Client(address(host), "wrong") as client, pytest.raises(made.ServiceError) as refused:
        client.predict(made.Inputs(input=row))
    assert refused.value.code == "token"


def test_pictures_as_files_and_pixels(host: Hosted, packages: Path) -> None:
    """The same labels for a PNG and for its pixels; k is a parameter."""
    made = module(packages, "colours")
    picture = photo(64, 48)
    with made.Client(address(host), TOKEN) as client:
        filed = client.predict(encode(picture, "PNG"), k=2)
        pixels = client.predict(np.asarray(picture.convert("RGB")), k=2)
        assert filed == pixels
        assert [one.label for one in filed.top] == [filed.label, filed.top[1].label]
        assert (filed.width, filed.height) == (64, 48)
        with pytest.raises(TypeError, match="must be uint8"):
            client.predict(np.zeros((4, 4)))


def test_recordings_as_files_and_samples(host: Hosted, packages: Path) -> None:
    """The same text for a WAV and for its samples; segments come one by one."""
    made = module(packages, "ear")
    samples = long_whistle("abc", "cab")
    with made.Client(address(host), TOKEN) as client:
        filed, sampled = client.predict(wav(samples)), client.predict(samples, rate=16_000)
        assert filed.text == sampled.text == "abc cab"
        segments = list(client.segments(samples))
        assert [one.text for one in segments] == ["abc", "cab"]
        assert segments[0].end <= segments[1].start
        next(iter(client.segments(samples)))  # left in the middle: the next request goes on
        assert client.predict(samples).text == "abc cab"


def test_histories_and_texts(host: Hosted, packages: Path) -> None:
    """Fields of a request are parameters; what is left out is not sent."""
    made = module(packages, "recommend")
    with made.Client(address(host), TOKEN) as client:
        found = client.predict(np.array([2, 3]), k=2)
        assert [(one.item, one.title) for one in found.items] == [(6, "Film 6"), (5, "Film 5")]
        rated = client.predict([2, 3], ratings=np.array([1.0, 2.0]), include_seen=True)
        assert len(rated.items) == 6
    made = module(packages, "words")
    with made.Client(address(host), TOKEN) as client:
        assert client.predict("A good film").label == "POSITIVE"
        both = client.predict("A good film", top_k=2)
        assert [one.label for one in both] == ["POSITIVE", "NEGATIVE"]


def described(interface: Interface, **facts: Any) -> dict[str, Any]:
    """The document of a model with an interface."""
    known = {**interface.facts(), "inputs": [], "outputs": [], **facts}
    return document([ServedModel("odd-name", "2", False, True, known)], "1")


def test_a_handler_without_a_declaration_gets_bytes(tmp_path: Path) -> None:
    """Bytes in and out; the path names a version that is not the default one."""
    text = source(described(opaque("a thing")))
    assert "def predict(self, body: bytes, content_type: str = OCTETS_TYPE) -> bytes:" in text
    assert "PATH = '/predictions/odd-name/2'" in text
    compile(text, "x", "exec")
    assert len(write(described(opaque(None)), tmp_path / "pkg")) == 5


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Encrypted models, folders that no import reaches, folders of something else."""
    whole = described(opaque(None))
    with pytest.raises(UsageError, match="must name a folder that Python can import"):
        write(whole, tmp_path / "a-b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").touch()
    with pytest.raises(UsageError, match=r"must be new or hold a client, got work\.py"):
        write(whole, tmp_path / "mine")
    body = BodyForm("application/octet-stream", {})
    with pytest.raises(UsageError, match=r"Ask it with marship\.private"):
        write(described(Interface(ENCRYPTED, (body,), (body,))), tmp_path / "he")
    assert not (tmp_path / "he").exists()


def test_names_that_python_has_not() -> None:
    """Inputs called as keywords, alike, or with dots are fields of other names."""
    spec = {"dtype": "float32", "shape": ["batch"], "datatype": "FP32", "labels": []}
    inputs = [{**spec, "name": name} for name in ("class", "a.1", "a-1", '"""', "1")]
    text = source(described(Interface("tensors", (), ()), inputs=inputs, outputs=inputs[:1]))
    compile(text, "x", "exec")
    for field in ("class_:", "a_1:", "a_1_2:", "value:", "_1:"):
        assert f"    {field}" in text
    spec["dtype"] = "float32]\nimport os  #"
    with pytest.raises(UsageError, match="must be of a type that NumPy has"):
        source(described(Interface("tensors", (), ()), inputs=[{**spec, "name": "a"}], outputs=[]))


def test_pixels_become_the_same_picture(packages: Path) -> None:
    """The PNG that a client writes is read by others to the same pixels."""
    made = module(packages, "colours")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = packages / "p.png"
    path.write_bytes(made.picture_bytes(pixels))
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
