"""The signed statement about an archive: name, model, and digests of it and of each file.

The statement is canonical JSON: names sorted, no whitespace, UTF-8. So equal archives give equal
bytes, and a statement has one interpretation.

    {"algorithm": "ed25519", "format": 1, "key": <id>,
     "model": {"name": ..., "version": ...},
     "archive": {"name": "recommend.mar", "sha256": ..., "size_bytes": ...},
     "files": {"model.onnx": {"sha256": ..., "size_bytes": ...}, ...}}

The digest of the whole archive covers what the digests of files do not: order, gaps, folders and
headers. Those of the files let an error name the file that differs.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from marship import texts
from marship.errors import SignatureError
from marship.trust.contents import ArchiveContents, File
from marship.trust.envelope import MAX_SIGNATURE_BYTES

FORMAT = 1
ALGORITHM = "ed25519"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about an archive by the owner of a key.

    Attributes:
        archive: The archive's file name.
        contents: The contents when it was signed.
        key_id: The id of the signing key.
    """

    archive: str
    contents: ArchiveContents
    key_id: str

    def to_bytes(self) -> bytes:
        """The bytes to sign."""
        contents = self.contents
        value = {
            "algorithm": ALGORITHM,
            "archive": {
                "name": self.archive,
                "sha256": contents.sha256,
                "size_bytes": contents.size_bytes,
            },
            "files": {name: asdict(file) for name, file in contents.files.items()},
            "format": FORMAT,
            "key": self.key_id,
            "model": {"name": contents.model, "version": contents.version},
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Statement":
        """Read a statement whose signature is verified already.

        Raises:
            SignatureError: It is of another format version, or not canonical.
        """
        try:
            value = texts.json_value(data, most_bytes=MAX_SIGNATURE_BYTES)
            if value["format"] != FORMAT:
                raise SignatureError(
                    f"a signature must be of format {FORMAT}, got {value['format']!r}. "
                    "Verify it with the marship that wrote it, or sign again."
                )
            statement = cls(value["archive"]["name"], _contents(value), value["key"])
            whole = statement.to_bytes() == data and _is_count(statement.contents.size_bytes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable() from error
        if not whole:
            raise _unreadable()
        return statement

    def differences(self, found: ArchiveContents) -> list[str]:
        """The differences of an archive from the signed one; empty if equal."""
        signed, files = self.contents.files, found.files
        groups = {
            "changed": [name for name in signed if name in files and files[name] != signed[name]],
            "added": [name for name in files if name not in signed],
            "removed": [name for name in signed if name not in files],
        }
        parts = [f"{kind}: {_listed(names)}" for kind, names in groups.items() if names]
        if not parts and found != self.contents:
            return ["the same files packed in another way"]
        return parts


def _contents(value: Mapping[str, Any]) -> ArchiveContents:
    archive, model = value["archive"], value["model"]
    files = {name: File(**file) for name, file in value["files"].items()}
    return ArchiveContents(
        archive["size_bytes"], archive["sha256"], files, model["name"], model["version"]
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def _unreadable() -> SignatureError:
    return SignatureError("a signed statement must be one of marship's, got another. Sign again.")
