"""Public functions take a path as text wherever they take a Path."""

from pathlib import Path

import pytest

from marship import Client
from marship.engines.torchserve import server
from marship.errors import DataError, UsageError
from marship.exporting.step import ExportSettings, export_model, export_run
from marship.operate import statefile
from marship.optimizing.step import OptimizeSettings, optimize
from marship.packaging.configure import configure
from marship.packaging.step import PackageSettings, package
from marship.trust import archive, keys, signature
from marship.trust.policy import Trust


def test_an_archive_is_made_read_and_signed_by_paths_as_text(
    linear_onnx: Path, tmp_path: Path
) -> None:
    """Package, read, configure, keys, sign, trust and verify."""
    made = str(package(str(linear_onnx), PackageSettings(model_store=tmp_path)))
    assert archive.read(made).name == configure(made, []).archive.name == "linear"
    pair = keys.generate("k", str(tmp_path / "keys"))
    signed = signature.sign(made, keys.read_private(str(pair.private)))
    verified = Trust.load(str(tmp_path / "keys")).verify(made)
    assert verified.key.id == signed.key_id == keys.read_public(str(pair.public)).id


def test_what_needs_more_gets_as_far_as_the_same_path_does(tmp_path: Path) -> None:
    """The error about what is missing is the one that a Path gets; none is about the type."""
    missing = tmp_path / "missing"
    for kind in (str, Path):
        place = kind(missing)
        for call in (
            lambda at=place: export_run(at, ExportSettings()),
            lambda at=place: optimize(at, OptimizeSettings()),
            lambda at=place: export_model(
                "m:f", example=at, settings=ExportSettings(), weights=at, out=at
            ),
            lambda at=place: statefile.read(at),
            lambda at=place: server.log_files(at),
        ):
            with pytest.raises((UsageError, DataError), match="missing"):
                call()


def test_clients_take_a_home_as_text(tmp_path: Path) -> None:
    """With its tokens and addresses."""
    with Client(str(tmp_path)) as client:
        assert client.home.path == tmp_path
    elsewhere = Client(management_url="http://127.0.0.1:9", model_store=str(tmp_path))
    assert elsewhere.model_store == tmp_path
