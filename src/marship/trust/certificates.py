"""Self-signed certificates with a key of their own: a party's, and one for trying TLS."""

import datetime as dt
import ipaddress
from collections.abc import Sequence

SKEW = dt.timedelta(days=1)
"""How far a clock may be behind ours."""


def self_signed(hosts: Sequence[str], lasts: dt.timedelta, *, is_root: bool) -> tuple[bytes, bytes]:
    """Make a certificate and its key (ECDSA, P-256), both in PEM.

    Args:
        hosts: Host names and addresses that it is for; the first is the subject's name.
        lasts: From now.
        is_root: Whether it is its own authority, as clients want that verify it with itself alone;
            else it signs nothing.

    Returns:
        The private key and the certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    names: list[x509.GeneralName] = [
        x509.DNSName(host) if (address := _address(host)) is None else x509.IPAddress(address)
        for host in hosts
    ]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, made.public_bytes(serialization.Encoding.PEM)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
