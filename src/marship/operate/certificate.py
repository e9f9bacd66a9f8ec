"""A self-signed certificate for trying TLS on one machine; not for production."""

import datetime as dt
import ipaddress
import os
from pathlib import Path

from marship import storage

CERTIFICATE_FILE, KEY_FILE = "self-signed.pem", "self-signed.key"
LASTS = dt.timedelta(days=30)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for localhost and its key (ECDSA, P-256), readable by its owner only.

    Args:
        folder: The folder for both; existing files are replaced.

    Returns:
        The certificate's file and the key's, absolute.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    hosts: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))  # tolerates clock skew
        .not_valid_after(now + LASTS)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(folder / KEY_FILE, private, 0o600)
    _write(folder / CERTIFICATE_FILE, made.public_bytes(serialization.Encoding.PEM), 0o644)
    return (folder / CERTIFICATE_FILE).absolute(), (folder / KEY_FILE).absolute()


def _write(path: Path, data: bytes, mode: int) -> None:
    with storage.replacing(path) as draft:
        draft.touch(mode)
        os.chmod(draft, mode)  # noqa: PTH101  whatever the umask is
        draft.write_bytes(data)
