"""Names of models, which are part of URLs and of file names."""

import re

from marship.errors import PackageError, UsageError

LONGEST_NAME = 200
"""Of a model: names of files contain it, and have 255 bytes at most."""

LONGEST_VERSION = 32
_SHOWN_NAME = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def checked_name(name: str) -> str:
    """The name, if it is a valid model name.

    Raises:
        UsageError: It cannot be part of a URL, or collides with TorchServe's token API.
    """
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"a model's name must have {LONGEST_NAME} characters at most, got {len(name)}: "
            f"{name[:_SHOWN_NAME]}... Package or register it under another name."
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a model's name must be of letters, digits and _ . -, got {name!r}. "
            "Package or register it under another name."
        )
    if name.startswith("token"):  # its management port takes any "/token" for a token request
        raise UsageError(
            f"a model's name must not start with token, got {name!r}: TorchServe would refuse "
            "every call about it. Package or register it under another name."
        )
    return name


def checked_version(version: str) -> str:
    """The version, if it is valid in names of files: that of an archive of another tool may not be.

    Raises:
        PackageError: It is not.
    """
    if len(version) > LONGEST_VERSION or not _NAME.fullmatch(version):
        raise PackageError(
            f"a version must be of letters, digits and _ . -, and have {LONGEST_VERSION} at most, "
            f"got {version[:_SHOWN_NAME]!r}. Package the model again."
        )
    return version
