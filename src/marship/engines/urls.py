"""URLs of object stores and web servers, for fsspec."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marship.errors import UsageError

_SHOWN = 200
"""Characters of another library's error."""


def opened(url: str, what: str = "a URL") -> tuple[Any, str]:
    """A URL's file system, and the path there.

    Args:
        url: The URL, or a path.
        what: What it is, for errors.

    Raises:
        UsageError: There is no system for it here, or the URL has a password.
    """
    import fsspec

    try:
        passwords = [urlsplit(part).password for part in url.split("::")]  # one may hold another
    except ValueError as error:  # brackets that are no address
        raise _unreadable(url, what, error) from error
    if any(password is not None for password in passwords):
        raise UsageError(
            f"{what} must hold no password, since it is kept in the clear. Give it by the "
            "environment, or by a file of fsspec in ~/.config/fsspec."
        )
    try:
        system, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise _unreadable(url, what, error) from error
    return system, path


def checked(place: str, what: str) -> str:
    """A folder's whole path, or a URL that can be read here.

    Args:
        place: Folder or URL.
        what: What it is, for errors.

    Raises:
        UsageError: It cannot be opened.

    Example:
        >>> checked("/srv/models", "--archives")
        '/srv/models'
    """
    if not place:
        raise UsageError(f"{what} must be a folder or URL, got an empty one.")
    try:
        if "://" not in place and "::" not in place:
            return str(Path(place).expanduser().absolute())  # commands run in any folder
        system, path = opened(place, what)
    except UsageError:
        raise
    except Exception as error:  # each system has errors of its own
        raise _unreadable(place, what, error) from error
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    named = {part.partition(":")[0] for part in place.split("::")}
    if (protocols | named) & {"memory", "data"}:
        raise UsageError(f"{what} must be read by all nodes, got {place}, which one process has.")
    return str(path) if "file" in protocols else place


def _unreadable(url: str, what: str, error: Exception) -> UsageError:
    # the first line, and the start of it: where Hadoop is missing, Arrow names each JAR it tried
    told = (str(error) or repr(error)).strip().splitlines()[0].rstrip(".")[:_SHOWN]
    return UsageError(f"{what} must be one that fsspec reads here, got {url}: {told}.")
