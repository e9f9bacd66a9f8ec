"""Writes a model's `.mar`: self-contained, and the same bytes every time.

torch-model-archiver lays it out; what it leaves to chance, names' order and times, is set here.
"""

import io
import json
import re
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from marship import profiles
from marship.contract import (
    GOLDEN_REQUESTS_FILE,
    GRAPHS_FOLDER,
    LIBRARIES_FOLDER,
    Contract,
    GoldenCase,
)
from marship.errors import UsageError
from marship.packaging import configure, evidence, recording, sealing
from marship.packaging.graph import Graph
from marship.packaging.settings import PackageSettings
from marship.proof import missing
from marship.serving.formats import extent, golden
from marship.serving.model import keysource
from marship.serving.model.sealed import Sealer
from marship.storage import replacing
from marship.trust import archive, outline
from marship.trust.archive import CONFIG_FILE, EVIDENCE_FILE, MANIFEST_FILE

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
MANIFEST_EPOCH = "01/01/1980 00:00:00"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_NAME = 200
"""Characters of an archive's file name, which is written under a longer one first."""
_PRIVATE = b"marship.serving.private"
_archiving = threading.Lock()
"""The archiver takes the process's temp folder for its own: one archive at a time."""


def name_of(folder: Path) -> str:
    """A folder's name, with dashes for what the name of a model cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")


def file_name(name: str, settings: PackageSettings) -> str:
    """The name of an archive's file.

    Raises:
        UsageError: The model's name has other characters than a name may have, or too many.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no model name. Give one with --name.")
    stem = f"{name}-{settings.version}" if settings.versioned else name
    if len(stem) > _MOST_NAME:
        raise UsageError(
            f"the name and version of a model must have at most {_MOST_NAME} characters, which "
            f"name its file, got {len(stem)}. Give a shorter one with --name."
        )
    return f"{stem}.mar"


def check_files(handler: Path, assets: Iterable[Path]) -> None:
    """Check what goes into an archive beside the model.

    Raises:
        UsageError: A file is missing, or the handler is not one class of Python, or cannot be
            imported by its name.
    """
    for path in (handler, *assets):
        if not path.is_file():
            raise UsageError(f"{path} must be a file that goes into the archive, got none there.")
    _check_handler(handler)


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into an archive, wherever it came from.

    Attributes:
        graphs: Further graphs, which the handler runs, by name.
        libraries: Files with the custom operators that the contracts name.
        kind: How the model's files are written.
    """

    name: str
    handler: Path
    model: Path
    contract: Contract
    golden: list[GoldenCase]
    evidence: Mapping[str, Any]
    assets: tuple[Path, ...] = field(default=())
    requests: tuple[Path, ...] = field(default=())
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    libraries: tuple[Path, ...] = field(default=())
    kind: type[Graph] = Graph


def build(contents: Contents, settings: PackageSettings) -> Path:
    """Write the archive with torch-model-archiver, then make its bytes repeatable."""
    from model_archiver.model_packaging import generate_model_archive
    from model_archiver.model_packaging_utils import ModelArchiverConfig

    check_store(settings.model_store)
    check_files(contents.handler, contents.assets)
    own = [] if settings.seal is None else [sealing.WEIGHTS_FILE]
    archive.check_names(
        [
            ("the handler", contents.handler.name),
            *(("an asset", path.name) for path in contents.assets),
        ],
        own=own,
    )
    target = settings.model_store / file_name(contents.name, settings)
    sealer = None
    if settings.seal is not None:
        sealer = Sealer(keysource.read(settings.seal), contents.name, settings.version)
    with replacing(target) as draft, _private_temp(draft.parent) as scratch:
        stage = _stage(contents, _graphs(contents, own), settings, sealer, scratch / "stage")
        generate_model_archive(
            ModelArchiverConfig(
                model_name=contents.name,
                handler=str(contents.handler),
                version=settings.version,
                extra_files=str(stage / "extra"),
                export_path=str(scratch),
                archive_format="zip-store",
                config_file=str(stage / CONFIG_FILE),
            )
        )
        built = scratch / f"{contents.name}.mar"
        if contents.requests:
            _add_requests(built, contents, settings, sealer)
        _normalize(built, draft)
    return target


def check_store(store: Path) -> None:
    """Refuse a store whose path the archiver, which finds staged files there, splits at commas.

    Raises:
        UsageError: There is a comma in it.
    """
    if "," in str(store.absolute()):
        raise UsageError(
            f"the path of a model store must have no comma, got {store.absolute()}. Name another "
            "with --model-store, and move archives there."
        )


def _add_requests(
    built: Path, contents: Contents, settings: PackageSettings, sealer: Sealer | None
) -> None:
    """Record the responses to golden requests with the archive as it is, and add them to it."""
    folder = built.with_name("loaded")
    with zipfile.ZipFile(built) as archived:
        archived.extractall(folder)
    requests = recording.record(
        folder,
        {
            "handler": contents.handler.name,
            "name": contents.name,
            "version": settings.version,
            "config": yaml.safe_load((folder / CONFIG_FILE).read_text()),
            "limit_bytes": extent.SHIPPED_BYTES,
        },
        paths=contents.requests,
        seal=settings.seal,
        limit_s=settings.startup_timeout_s,
    )
    text = golden.write(requests)
    path = folder / GOLDEN_REQUESTS_FILE
    if sealer is None:
        path.write_bytes(text)
    else:
        path = sealer.write(folder, GOLDEN_REQUESTS_FILE, io.BytesIO(text))
    with zipfile.ZipFile(built, "a") as archived:
        archived.write(path, path.name)


def _check_handler(path: Path) -> None:
    """Hold a handler's file against TorchServe's rule before a worker dies of it.

    Its model loader takes a function `handle`, else the only class that the file defines. It
    imports the file by its name, of which what stands before a dot would be a package.
    """
    if "." in path.stem:
        raise UsageError(
            f"a handler's file must have no dot before .py, since workers import it by its name, "
            f"got {path.name}. Rename it."
        )
    try:
        found = outline.outline({path.name: path.read_bytes()}, path.name)
    except outline.SourceError as error:
        raise UsageError(f"{path} must be Python, got: {error}.") from error
    classes = [kind.name for kind in found.classes if kind.is_top]
    if "handle" not in found.functions and len(classes) != 1:
        raise UsageError(
            f"{path} must define one class, as TorchServe takes a handler, got "
            f"{', '.join(classes) or 'none'}. Move others into a file packed with --asset."
        )


@contextmanager
def _private_temp(parent: Path) -> Iterator[Path]:
    """A temp folder of our own: the archiver deletes `$TMPDIR/<model name>` before it stages."""
    with _archiving, tempfile.TemporaryDirectory(dir=parent) as folder:
        before = tempfile.tempdir
        (Path(folder) / "tmp").mkdir()
        tempfile.tempdir = str(Path(folder) / "tmp")
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def _graphs(contents: Contents, own: list[str]) -> dict[str, Graph]:
    """All graphs by their folder in the archive, the model's own first."""
    others = [contents.handler.name, *(path.name for path in contents.assets)]
    first = contents.kind(contents.model, contents.contract, contents.golden)
    return {"": first.with_outside(others, own)} | {
        f"{GRAPHS_FOLDER}/{name}/": graph.with_outside(own=own)
        for name, graph in contents.graphs.items()
    }


def _stage(
    contents: Contents,
    graphs: Mapping[str, Graph],
    settings: PackageSettings,
    sealer: Sealer | None,
    stage: Path,
) -> Path:
    """Lay out `extra/`, which becomes the archive's top, and the configuration beside it."""
    extra = stage / "extra"
    _copy_serving(extra / "marship", contents.handler.read_bytes())
    for place, graph in graphs.items():
        graph.write(extra, sealer, place)
    for path in contents.assets:
        shutil.copyfile(path, extra / path.name)
    if contents.libraries:
        (extra / LIBRARIES_FOLDER).mkdir()
    for path in contents.libraries:
        shutil.copyfile(path, extra / LIBRARIES_FOLDER / path.name)
    told = contents.evidence if sealer is None else sealing.discreet(contents.evidence)
    facts = {**told, "versions": evidence.versions()}
    (extra / EVIDENCE_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    (stage / CONFIG_FILE).write_text(_model_config(settings))
    return stage


def _copy_serving(target: Path, handler: bytes) -> None:
    """The part of marship that runs in a worker, so that it need not be installed there.

    Private inference, a fourth of it, is left out where the handler's code does not import it.
    """
    source = Path(__file__).parents[1]
    names = ("__init__.py", "version.py", "errors.py")
    ground = [source / name for name in names]
    rooms = (path for name in ("contract", "serving") for path in (source / name).rglob("*.py"))
    wanted = [*ground, *rooms]
    if _PRIVATE not in handler:
        wanted = [path for path in wanted if source / "serving" / "private" not in path.parents]
    for path in wanted:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _model_config(settings: PackageSettings) -> str:
    """model-config.yaml.

    With any such file in the archive TorchServe takes these times from it and from nowhere
    else, so all of them are always written.
    """
    profile = profiles.find(settings.profile, settings.batch_size, settings.max_batch_delay_ms)
    config: dict[str, Any] = {
        "minWorkers": settings.min_workers,
        "maxWorkers": settings.max_workers,
        "batchSize": profile.batch_size,
        "maxBatchDelay": profile.max_batch_delay_ms,
        "responseTimeout": settings.response_timeout_s,
        "startupTimeout": settings.startup_timeout_s,
        "marship": {
            "profile": settings.profile,
            "providers": list(settings.provider),
            "spinning": settings.spinning,
        },
    }
    if settings.client_timeout_s is not None:
        config["clientTimeoutInMills"] = 1000 * settings.client_timeout_s
    if settings.intra_op_threads is not None:
        config["marship"]["intra_op_threads"] = settings.intra_op_threads
    if settings.missing_values == missing.ANY:
        config["marship"]["allow_non_finite"] = True
    config |= configure.section(configure.parsed(settings.option))
    return yaml.safe_dump(config, sort_keys=False)


def _normalize(built: Path, target: Path) -> None:
    """Copy a zip with sorted names and fixed times, so that equal contents are equal bytes."""
    with zipfile.ZipFile(built) as source, zipfile.ZipFile(target, "w") as sink:
        for name in sorted(source.namelist()):
            info = zipfile.ZipInfo(name, ZIP_EPOCH)
            info.external_attr = 0o644 << 16
            if name == MANIFEST_FILE:
                manifest = json.loads(source.read(name))
                manifest["createdOn"] = MANIFEST_EPOCH
                sink.writestr(info, json.dumps(manifest, indent=2) + "\n")
                continue
            info.file_size = source.getinfo(name).file_size
            with source.open(name) as reader, sink.open(info, "w") as writer:
                shutil.copyfileobj(reader, writer)
