"""A Containerfile, and beside it all that it copies: the build needs nothing else but packages.

The host runs in it without Java and PyTorch, as a user without rights, below a root that may be
read-only. marship is copied from this installation, so an image never gets another version than
the one that wrote it.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import marship
from marship import storage
from marship.deploying import packages, rules
from marship.deploying.settings import ImageSettings
from marship.deploying.template import TEMPLATES, Blanks
from marship.errors import UsageError
from marship.trust import archive as archives
from marship.trust.archive import Archive
from marship.trust.policy import Trust
from marship.trust.signature import beside

MODELS, TRUST = "/models", "/etc/marship/trust"
"""Where archives and keys lie in an image."""
_SOURCE = Path(marship.__file__).parent
_LEFT_OUT = ("__pycache__", "handlers")
_ENTRIES = {"requirements.txt", "marship", "models", "trust"}
"""What a build context holds, beside its Containerfile."""
_TOOLS = ("pip", "setuptools")
"""What venv installs; a host needs neither, unless a model's packages require it."""
_MARK = b"# Written by marship image."
_ACCELERATORS = {"cuda", "tensorrt"}


@dataclass(frozen=True, slots=True)
class ImageWritten:
    """What was written.

    Attributes:
        containerfile: The file; its folder is the build context.
        models: The archives' models.
        packages: Requirements of the image.
        base: The base image.
    """

    containerfile: Path
    models: tuple[str, ...]
    packages: tuple[str, ...]
    base: str


def read_all(paths: Sequence[Path], trust: Path | None) -> list[Archive]:
    """Read archives, which must be signed where keys are pinned.

    Raises:
        UsageError: One does not exist, or two have one model's name.
        PackageError: One cannot be read.
        SignatureError: One is not signed with a pinned key.
    """
    keys = None if trust is None else Trust.load(trust)
    found: dict[str, Archive] = {}
    for path in paths:
        if keys is not None:
            keys.verify(path)
        one = archives.read(path)
        for other in found.values():
            if one.name == other.name or path.name == other.path.name:
                raise UsageError(
                    f"each archive must have a model and a file name of its own, got {path} and "
                    f"{other.path}. Leave one out."
                )
        found[one.name] = one
    return list(found.values())


def places(found: Sequence[Archive], fetch_from: str | None) -> list[str]:
    """Where a pod finds each archive: in its image, or below a URL.

    Raises:
        UsageError: It is no URL.
    """
    if fetch_from is None:
        return [f"{MODELS}/{one.path.name}" for one in found]
    rules.check_url("--fetch-from", fetch_from)
    for one in found:
        rules.check_file(one.path.name)
    return [f"{fetch_from.rstrip('/')}/{one.path.name}" for one in found]


def accelerators(found: Archive) -> set[str]:
    """Providers of an accelerator that an archive asks for."""
    section = found.config.get("marship") or {}
    named = section.get("providers", [])
    return _ACCELERATORS & set(named if isinstance(named, list) else [])


def write(settings: ImageSettings, paths: Sequence[Path]) -> ImageWritten:
    """Write the Containerfile and its context.

    Args:
        settings: What is built, and where.
        paths: The archives.

    Raises:
        UsageError: A setting is invalid, or the folder holds something else.
        PackageError: An archive cannot be read.
        SignatureError: An archive is not signed with a pinned key.
    """
    base = settings.base or ""
    rules.check_base(base)
    if settings.fetch_from is not None and settings.trust is None:
        raise UsageError(
            "archives that are fetched must be signed with pinned keys, got --fetch-from without "
            "--trust. Name the folder of public keys."
        )
    found = read_all(paths, settings.trust)
    _check_devices(found, gpu=settings.gpu)
    if settings.index is not None:
        rules.check_url("--index", settings.index)
    needed = packages.pinned(found, gpu=settings.gpu, has_index=settings.index is not None)
    text = _containerfile(settings, found, needed)
    folder = settings.out.absolute().parent
    _check_context(folder, settings.out.name)
    with storage.replacing_entries(folder) as draft:
        lines = [] if settings.index is None else [f"--extra-index-url {settings.index}"]
        (draft / "requirements.txt").write_text("".join(f"{line}\n" for line in lines + needed))
        shutil.copytree(_SOURCE, draft / "marship", ignore=shutil.ignore_patterns(*_LEFT_OUT))
        if settings.fetch_from is None:
            _copy(draft / "models", [one.path for one in found], signed=settings.trust is not None)
        if settings.trust is not None:
            _copy(draft / "trust", sorted(settings.trust.glob("*.pem")), signed=False)
        (draft / settings.out.name).write_text(text)
        for name in _ENTRIES - {entry.name for entry in draft.iterdir()}:
            storage.remove(folder / name)
    return ImageWritten(settings.out, tuple(one.name for one in found), tuple(needed), base)


def _check_devices(found: Sequence[Archive], *, gpu: bool) -> None:
    for one in found:
        if (wanted := accelerators(one)) and not gpu:
            raise UsageError(
                f"the image for {one.name} must have {' and '.join(sorted(wanted))}, got ONNX "
                "Runtime for processors. Add --gpu and a base with CUDA, or package the model "
                "for cpu."
            )
    if gpu and not any(map(accelerators, found)):
        raise UsageError(
            "--gpu must come with a model that asks for cuda or tensorrt, got none. Leave it out."
        )


def _containerfile(settings: ImageSettings, found: Sequence[Archive], needed: Sequence[str]) -> str:
    kept = {line.partition("==")[0] for line in needed}
    tools = [tool for tool in _TOOLS if tool not in kept]
    removed = f" \\\n && /opt/marship/bin/pip uninstall -q -y {' '.join(tools)}" if tools else ""
    copies = [f"COPY models {MODELS}"] * (settings.fetch_from is None)
    copies += [f"COPY trust {TRUST}"] * (settings.trust is not None)
    command = places(found, settings.fetch_from)
    return Blanks((TEMPLATES / "Containerfile").read_text()).substitute(
        file=settings.out.name,
        base=settings.base,
        removed=removed,
        copies="\n".join(copies),
        trust=f', "--trust", "{TRUST}"' * (settings.trust is not None),
        command=", ".join(map(json.dumps, command)),
    )


def _check_context(folder: Path, file_name: str) -> None:
    """Check that what is replaced was written here: nothing, or a context with its Containerfile.

    Raises:
        UsageError: It may be the user's own.
    """
    # builders read .dockerignore and .containerignore
    if file_name in _ENTRIES or file_name.startswith(".") or not file_name.isprintable():
        raise UsageError(
            f"the Containerfile must have a name of its own, got {file_name!r}. Choose another "
            "with --out."
        )
    held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    held = [name for name in held if not storage.is_draft(name)]
    strange = [name for name in held if name not in {*_ENTRIES, file_name}]
    strange += _added(folder, folder / file_name)
    if not strange and (not held or _is_ours(folder / file_name)):
        return
    raise UsageError(
        f"{folder} must be empty, or hold a build context that marship image wrote, got "
        f"{(strange or held)[0]} in it. Choose another folder with --out FOLDER/Containerfile."
    )


def _added(folder: Path, containerfile: Path) -> list[str]:
    """Files among the archives of a context that its Containerfile does not name."""
    if not _is_ours(containerfile):
        return []
    text = containerfile.read_text(errors="replace")
    return [
        f"models/{path.name}"
        for path in sorted(folder.glob("models/*"))
        if json.dumps(f"{MODELS}/{path.name.removesuffix('.sig')}") not in text
    ]


def _is_ours(containerfile: Path) -> bool:
    try:
        return containerfile.read_bytes().startswith(_MARK)
    except OSError:
        return False


def _copy(folder: Path, paths: Sequence[Path], *, signed: bool) -> None:
    folder.mkdir()
    folder.chmod(0o755)  # the image's user is another one
    for path in paths:
        for source in (path, beside(path)) if signed else (path,):
            (folder / source.name).write_bytes(source.read_bytes())
            (folder / source.name).chmod(0o444)
