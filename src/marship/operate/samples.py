"""Samples of requests, opened into plain files that other commands take."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import orjson

from marship import storage
from marship.contract import Contract, TensorSpec
from marship.errors import MalformedError, RequestError, SealError, UsageError
from marship.serving.formats import codec, forms, kserve, media
from marship.serving.formats.tensors import BFLOAT16
from marship.serving.hosts.direct import request_log, samples
from marship.serving.hosts.direct.samples import RequestSample
from marship.serving.message import Request
from marship.serving.model import keysource, sealed

INDEX_FILE = "requests.jsonl"
_LEAST_PARTS = 3
_MOST_BYTES, _MOST_FIELDS = 1 << 30, 1 << 20
"""The server had its own limits, which the request was within."""


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """The samples of one version.

    Attributes:
        name: The model's name.
        version: Its version.
        folder: Where the plain files are.
        files: How many.
    """

    name: str
    version: str
    folder: Path
    files: int


@dataclass(frozen=True, slots=True)
class OpenedSamples:
    """What was opened.

    Attributes:
        versions: Those with a file that was opened.
        refused: Why each other file was not, by its path.
    """

    versions: tuple[OpenedVersion, ...]
    refused: Mapping[Path, str]


def open_all(folder: Path, out: Path, seal_key: str | None = None) -> OpenedSamples:
    """Write the samples below a folder as plain files, `OUT/MODEL/VERSION/NAME.json` and so on.

    Each has the suffix of its content type; beside them, `requests.jsonl` has the rest of each
    request. Only the owner can read them.

    Args:
        folder: The folder of all samples, of a model's or of a version's.
        out: The folder for plain files.
        seal_key: The source of the key; None is the environment's.

    Raises:
        UsageError: There is no key, or no sample, or `out` lies inside `folder`.
        SealError: The key cannot be read, or the library that decrypts is not installed.
        StorageError: `out` cannot be written to.
    """
    source = keysource.chosen(seal_key)
    if source is None:
        raise UsageError("--seal-key must name the key of samples, got none.")
    found = _find(folder.resolve())
    for place in found:
        if out.resolve().is_relative_to(root := place.parents[1]):
            raise UsageError(
                f"--out must lie outside the folder of samples, got {out} in {root}. Name another."
            )
    key = samples.key_of(keysource.read(source))
    sealed.cipher(key)
    with storage.explained(out):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    refused: dict[Path, str] = {}
    versions = [_open_version(paths, out, key, refused) for paths in found.values()]
    return OpenedSamples(tuple(one for one in versions if one.files), refused)


def summary(refused: Mapping[Path, str]) -> Iterator[str]:
    """The reasons, each once: with a wrong key it is the same for all files.

    Args:
        refused: Why each file was not opened, by its path.

    Example:
        >>> from pathlib import Path
        >>> from marship.operate.samples import summary
        >>> a, b = Path("a"), Path("b")
        >>> list(summary({a: "a must be whole.", b: "b must be whole."}))
        ['a must be whole. (and 1 other file likewise)']
    """
    found: dict[str, list[str]] = {}
    for path, reason in refused.items():
        found.setdefault(reason.replace(str(path), ""), []).append(reason)
    for reasons in found.values():
        others = len(reasons) - 1
        likewise = f" (and {others:,} other file{'s' * (others > 1)} likewise)" if others else ""
        yield f"{reasons[0]}{likewise}"


def _find(folder: Path) -> dict[Path, list[Path]]:
    """The sealed files below a folder, by the folder of their version."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{sealed.SUFFIX}")):
        if path.is_file() and len(path.parts) > _LEAST_PARTS:
            found.setdefault(path.parent, []).append(path)
    if not found:
        raise UsageError(f"{folder} must hold samples, got none. Name the folder of --samples.")
    return found


def _open_version(
    paths: list[Path], out: Path, key: bytes, refused: dict[Path, str]
) -> OpenedVersion:
    """Open the files of one folder, whose name and parent's name they are bound to."""
    names = paths[0].parts[-3:-1]
    model, version = map(unquote, names)
    target, rows = out.joinpath(*names), []
    with ExitStack() as stack:
        drafts: Path | None = None
        for path in paths:
            try:
                sample = samples.opened(path, key, model, version)
                request = _request(sample)
            except (SealError, RequestError, OSError) as error:
                refused[path] = _reason(path, error)
                continue
            drafts = drafts or stack.enter_context(storage.replacing_all(target))
            suffix = media.suffix_of(request.content_type, request.body)
            rows.append(_row(path.stem + suffix, sample, request))
            _write(drafts / f"{path.stem}{suffix}", request.body)
        if drafts is not None:
            _write(drafts / INDEX_FILE, b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return OpenedVersion(model, version, target, len(rows))


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, SealError):  # the advice there is about archives
        return str(error).replace(sealed.ADVICE, "Delete it, or put it back as it was.")
    return f"{path} must hold a request that can be read, got: {error}"


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _request(sample: RequestSample) -> Request:
    """The request as its model read it: without encodings, out of its form, and no raw tensors.

    Raises:
        RequestError: It cannot be read so.
    """
    headers = {"content-type": sample.content_type}
    if sample.content_encoding:
        headers["content-encoding"] = sample.content_encoding
    request = forms.request_of(
        sample.body, headers, most_fields=_MOST_FIELDS, most_bytes=_MOST_BYTES
    )
    if sample.json_bytes:
        request.body = _without_raw(request.body, sample.json_bytes)
        request.content_type = codec.JSON_TYPE
    return request


def _without_raw(body: bytes, json_bytes: str) -> bytes:
    """KServe's raw tensors as JSON by name, which needs no header to be read."""
    text, raw = kserve.split(body, json_bytes)
    value = codec.read_json(text, codec.JSON_TYPE)
    try:
        specs = tuple(
            TensorSpec(
                entry["name"],
                kserve.DTYPES.get(entry["datatype"], "float32"),
                tuple(entry["shape"]),
                narrow=BFLOAT16 if entry["datatype"] == kserve.BFLOAT16 else "",
            )
            for entry in value["inputs"]
        )
    except (KeyError, TypeError) as error:
        raise MalformedError(
            f"a body with {kserve.LENGTH_HEADER} must be KServe's, got none."
        ) from error
    arrays, _ = kserve.decode(value, raw, Contract(specs, (), (), "", 0))
    return orjson.dumps({name: array.tolist() for name, array in arrays.items()})


def _row(name: str, sample: RequestSample, request: Request) -> dict[str, object]:
    """What a plain file does not tell of its request."""
    return {
        "file": name,
        "path": sample.path,
        "query": sample.query,
        "content_type": request.content_type,
        "fields": {key: request_log.shown(value) for key, value in request.fields.items()},
    }
