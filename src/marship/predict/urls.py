"""Files at URLs of object stores and web servers, read by fsspec."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marship.engines.urls import opened
from marship.errors import StorageError, UsageError
from marship.predict.sources import FORMULA_STARTS, Source, Stamp, preferred

_WITH_QUERIES = ("http", "https")
_CHANGED = ("mtime", "LastModified", "last_modified", "updated", "created", "Last-Modified", "ETag")
"""What systems call the time of a file's last change, or what changes with it."""


@dataclass(frozen=True, slots=True)
class UrlSource(Source):
    """A file at a URL.

    Attributes:
        url: The URL.
        listed: Its stamp when the files were listed: one that changes later is predicted again by
            the next run.
    """

    url: str
    listed: Stamp

    @classmethod
    def of(cls, url: str, listed: Stamp) -> "UrlSource":
        """The source at a URL.

        Example:
            >>> UrlSource.of("s3://pets/cat.jpg", Stamp(3, "")).kind
            'image/jpeg'
        """
        name = f"./{url}" if url.startswith(FORMULA_STARTS) else url
        scheme, _, rest = url.partition("://")
        # elsewhere ? and # may be in a name (RFC 3986, 3.4 is of URLs, and keys are none)
        path = urlsplit(url).path if scheme in _WITH_QUERIES else rest
        return cls(Path(path), name, url, listed)

    def stamp(self) -> Stamp:
        """As it was listed."""
        return self.listed

    def read(self) -> bytes:
        """What it holds.

        Raises:
            OSError: It cannot be read.
        """
        system, path = opened(self.url)
        try:
            data: bytes = system.cat_file(path)
        except OSError:
            raise
        except Exception as error:  # each system has errors of its own
            raise OSError(repr(error)) from error
        return data


def listed(url: str, suffixes: Collection[str]) -> tuple[list[UrlSource], list[str]]:
    """The files below a URL to predict, sorted, and the names of those passed over.

    The rules are those of folders: see `sources.find`.

    Raises:
        UsageError: As `opened`; or there is nothing.
        StorageError: It cannot be listed.
    """
    try:
        system, path = opened(url)
        system.invalidate_cache()
        found: Mapping[str, Mapping[str, Any]] = system.find(path, detail=True)
        files = [
            UrlSource.of(system.unstrip_protocol(name), _stamp(system, name, found[name]))
            for name in sorted(found)
            if not _is_hidden(name, path)
        ]
        if not files:
            _check_listed(system, path)
    except (StorageError, UsageError):
        raise
    except Exception as error:  # each system has errors of its own
        raise StorageError(f"{url} must be a folder that can be listed, got: {error!r}.") from error
    if not files:
        raise UsageError(f"{url} must be a file or a folder, got none there.")
    if len(files) == 1 and files[0].url == url:
        return files, []
    if suffixes:
        return [file for file in files if file.path.suffix.lower() in suffixes], []
    taken = preferred({file: file.kind for file in files})
    kept = set(taken)
    return taken, [file.name for file in files if file not in kept]


def _check_listed(system: Any, path: str) -> None:  # noqa: ANN401  fsspec's
    """Ask again about a folder in which nothing is: `find` takes any failure for that.

    Raises:
        Exception: What the system says; not that nothing is there.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        system.ls(path)


def _is_hidden(name: str, root: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(root).split("/"))


def _stamp(system: Any, path: str, facts: Mapping[str, Any]) -> Stamp:  # noqa: ANN401  fsspec's
    """A file's stamp, by what its system tells of it.

    Raises:
        StorageError: It tells no size.
    """
    if facts.get("size") is None:
        facts = system.info(path)
    if facts.get("size") is None:
        raise StorageError(f"{path} must have a size that its server tells, got none.")
    changed = next((facts[name] for name in _CHANGED if facts.get(name)), "")
    if isinstance(changed, int | float):
        changed = datetime.fromtimestamp(changed, UTC)
    text = changed.isoformat() if isinstance(changed, datetime) else str(changed)
    return Stamp(int(facts["size"]), text)
