"""A self-signed certificate for trying TLS on one machine; not for production."""

import datetime as dt
import os
from pathlib import Path

from marship import storage
from marship.trust import certificates

CERTIFICATE_FILE, KEY_FILE = "self-signed.pem", "self-signed.key"
LASTS = dt.timedelta(days=30)
HOSTS = "localhost", "127.0.0.1", "::1"


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for localhost and its key (ECDSA, P-256), readable by its owner only.

    Args:
        folder: The folder for both; existing files are replaced.

    Returns:
        The certificate's file and the key's, absolute.
    """
    private, public = certificates.self_signed(HOSTS, LASTS, is_root=True)
    _write(folder / KEY_FILE, private, 0o600)
    _write(folder / CERTIFICATE_FILE, public, 0o644)
    return (folder / CERTIFICATE_FILE).absolute(), (folder / KEY_FILE).absolute()


def _write(path: Path, data: bytes, mode: int) -> None:
    with storage.replacing(path) as draft:
        draft.touch(mode)
        os.chmod(draft, mode)  # noqa: PTH101  whatever the umask is
        draft.write_bytes(data)
