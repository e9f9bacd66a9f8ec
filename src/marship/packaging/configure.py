"""Reads and changes the handler's settings in a built archive, without packaging again.

They are the section `handler` of model-config.yaml. All other files stay byte for byte, and equal
changes of equal archives give equal files.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from marship import texts
from marship.contract import GOLDEN_REQUESTS_FILE
from marship.errors import PackageError, UsageError
from marship.serving.model.sealed import SUFFIX
from marship.storage import replacing
from marship.trust import archive, extract

SECTION = "handler"
Scalar = str | int | float | bool
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, slots=True)
class Configured:
    """An archive's settings.

    Attributes:
        archive: The archive after the change.
        before: The handler's settings before the change.
        after: The handler's settings after the change.
        version_before: The archive's version before the change.
    """

    archive: archive.Archive
    before: Mapping[str, Scalar]
    after: Mapping[str, Scalar]
    version_before: str

    @property
    def changed(self) -> bool:
        """Whether the archive was rewritten."""
        same = repr(self.before) == repr(self.after)  # since 1, 1.0 and True are equal
        return not same or self.version_before != self.archive.version


def parsed(options: Sequence[str]) -> dict[str, Scalar | None]:
    """Parse settings of the form NAME=VALUE; None if there is no value.

    Raises:
        UsageError: One is malformed, duplicate, or has a value of an unsupported type.
    """
    found: dict[str, Scalar | None] = {}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign or not _NAME.fullmatch(name):
            raise UsageError(
                "an option must read name=value, the name in small letters, digits and "
                f"underscores, got {option!r}."
            )
        if name in found:
            raise UsageError(f"option {name} must be given once, got it twice.")
        found[name] = _scalar(name, text)
    return found


def _scalar(name: str, text: str) -> Scalar | None:
    try:
        value = texts.yaml_value(text.encode(errors="surrogateescape"))
        if _NUMBER.fullmatch(text):  # YAML 1.1 reads 1e-3 as a text and 010 as 8
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise UsageError(f"option {name} must have a value, got {text!r}. Quote it.") from error
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise UsageError(
        f"option {name} must be a number, a text, true or false, got {text!r}. "
        f"""Quote it to make it a text: {name}='"{text}"'."""
    )


def section(options: Mapping[str, Scalar | None]) -> dict[str, Any]:
    """The section of model-config.yaml for these settings; empty without any."""
    chosen = {name: value for name, value in sorted(options.items()) if value is not None}
    return {SECTION: chosen} if chosen else {}


def configure(path: str | Path, options: Sequence[str], version: str | None = None) -> Configured:
    """Change settings of the handler in an archive, and its version if one is given.

    A setting without a value is removed, so that the handler's default applies.

    Raises:
        UsageError: The file does not exist, or an option or the version is malformed.
        PackageError: It is not an archive, was not built by marship, or has golden requests, whose
            responses were recorded with the settings as they are.
    """
    path = Path(path)
    read = archive.read(path)
    before: dict[str, Scalar] = read.config.get(SECTION) or {}
    if not isinstance(before, dict):
        raise PackageError(f"{path} must hold settings by name in {SECTION}, got {before!r}.")
    changes = parsed(options)
    if version is not None and not VERSION.fullmatch(version):
        raise UsageError(f"version must be digits and dots, such as 1.1, got {version!r}.")
    if read.sealed and version not in (None, read.version):
        raise PackageError(
            f"the version of {path} must stay {read.version}, to which its sealed files are bound, "
            f"got {version}. Package the model again with --version {version}."
        )
    after: dict[str, Scalar] = section({**before, **changes}).get(SECTION, {})
    done = Configured(read, before, after, version_before=read.version)
    names = {member.name.removesuffix(SUFFIX) for member in read.members}
    if repr(done.before) != repr(done.after) and GOLDEN_REQUESTS_FILE in names:
        raise PackageError(
            f"the settings of {path} must stay as its golden requests were recorded with them, got "
            "others. Package the model again with --option."
        )
    if version not in (None, read.version) or done.changed:
        contents = _changed_texts(read, after, version or read.version)
        with replacing(path) as draft:
            extract.rewrite(path, read.plain, draft, files=contents)
    return replace(done, archive=archive.read(path))


def _changed_texts(
    read: archive.Archive, options: Mapping[str, Scalar], version: str
) -> dict[str, bytes]:
    """The new texts of the two files that change, by name."""
    name = archive.config_name(read.manifest)
    if name not in {member.name for member in read.members}:
        raise PackageError(f"{read.path} must hold {name}, got none. Package the model again.")
    config = {key: value for key, value in read.config.items() if key != SECTION}
    manifest = {**read.manifest, "model": {**read.manifest["model"], "modelVersion": version}}
    changed = {name: yaml.safe_dump(config | section(options), sort_keys=False)}
    if version != read.version:
        changed[archive.MANIFEST_FILE] = json.dumps(manifest, indent=2) + "\n"
    return {name: text.encode() for name, text in changed.items()}
