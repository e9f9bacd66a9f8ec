"""What Kubernetes or a registry would refuse, refused before anything is written."""

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from marship.errors import UsageError

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_LABEL, _LONGEST_SUBDOMAIN = 63, 253
_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_PART}(\.{_PART})*")
_CPU = re.compile(r"[0-9]{1,9}m|[0-9]{1,6}(\.[0-9]{1,3})?")
_MEMORY = re.compile(r"([0-9]{1,15})([KMGT]i|[kMGT])?")
_MOST_BYTES = (1 << 63) - 1
"""Kubernetes counts bytes in int64."""
_UNITS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGT", start=1)
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
    r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.mar")
_PORTS = {"http": 80, "https": 443}
_STORAGES = ("oci", "pvc", "s3", "gs")


def check_name(what: str, name: str) -> None:
    """Check a name of a Service, and of what is named after it.

    Raises:
        UsageError: It is no label of DNS that begins with a letter (RFC 1035).
    """
    if len(name) > _LONGEST_LABEL or not _LABEL.fullmatch(name):
        raise _no_label(f"{what} must be of a-z, 0-9 and -, begin with a letter", name, "--name")


def check_namespace(flag: str, name: str) -> None:
    """Check the name of a namespace, which may begin with a digit.

    Raises:
        UsageError: It is no label of DNS (RFC 1123).
    """
    if len(name) > _LONGEST_LABEL or not re.fullmatch(_PART, name):
        raise _no_label(f"{flag} must be of a-z, 0-9 and -, with no - at an end", name, flag)


def _no_label(rule: str, name: str, flag: str) -> UsageError:
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_LABEL].rstrip("-")
    advice = f" Take {flag} {near}." if _LABEL.fullmatch(near) else " Choose another."
    return UsageError(
        f"{rule}, and have {_LONGEST_LABEL} characters at most, got {name[:100]!r}.{advice}"
    )


def check_secret(what: str, name: str) -> None:
    """Check the name of a Secret.

    Raises:
        UsageError: It is no subdomain of DNS (RFC 1123).
    """
    if len(name) > _LONGEST_SUBDOMAIN or not _SUBDOMAIN.fullmatch(name):
        raise UsageError(
            f"{what} must be of a-z, 0-9, - and . (RFC 1123), got {name[:100]!r}. Name a Secret."
        )


def check_image(image: str) -> None:
    """Check a reference to an image.

    Raises:
        UsageError: It is no reference (OCI distribution), or what it names may change any time.
    """
    if not _IMAGE.fullmatch(image):
        raise UsageError(
            f"the image must be REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST, got {image!r}."
        )
    name = image.rpartition("/")[2]
    if (":" not in name and "@" not in name) or name.endswith(":latest"):
        raise UsageError(
            f"the image must have a digest or a tag other than latest, got {image}: pods of one "
            "Deployment would differ."
        )


def check_base(image: str) -> None:
    """Check a base image.

    Raises:
        UsageError: It is not pinned by a digest.
    """
    if not _IMAGE.fullmatch(image) or not _DIGEST.fullmatch(image.rpartition("@")[2]):
        raise UsageError(
            f"the base image must be pinned by its digest, NAME@sha256:DIGEST, got {image!r}. "
            "See: skopeo inspect docker://NAME"
        )


def check_cpu(cpu: str) -> None:
    """Check an amount of processors.

    Raises:
        UsageError: It is written otherwise, or 0.
    """
    if not _CPU.fullmatch(cpu) or not float(cpu.rstrip("m")):
        raise UsageError(f"cpu must be such as 500m, 1 or 1.5, got {cpu!r}.")


def memory_bytes(memory: str) -> int:
    """An amount of memory.

    Raises:
        UsageError: It is written otherwise.
    """
    match = _MEMORY.fullmatch(memory)
    found = int(match[1]) * _UNITS[match[2]] if match else None
    if found is None or found > _MOST_BYTES:
        raise UsageError(f"memory must be such as 512Mi or 2Gi, got {memory[:100]!r}.")
    return found


def check_storage(uri: str | None) -> None:
    """Check where KServe finds archives.

    Raises:
        UsageError: It is not given, of a kind that is not supported, or has a password.
    """
    parts = _parts(uri)
    _check_open("storage", parts)
    is_claim = parts is None or parts.scheme != "pvc" or _SUBDOMAIN.fullmatch(parts.netloc)
    if parts is None or parts.scheme not in _STORAGES or not is_claim:
        raise UsageError(
            f"storage must be {'://..., '.join(_STORAGES)}://..., a folder or an image with the "
            f"archive, got {uri!r}. Add: --storage pvc://CLAIM/FOLDER"
        )


def check_url(what: str, url: str | None) -> int:
    """Check a URL.

    Returns:
        The port that is connected to.

    Raises:
        UsageError: It is not given, no http, or has a password.
    """
    parts = _parts(url)
    _check_open(what, parts)
    if parts is None or parts.scheme not in _PORTS or parts.query or parts.fragment:
        raise UsageError(f"{what} must be http(s)://HOST/..., got {url!r}.")
    return parts.port or _PORTS[parts.scheme]


def _check_open(what: str, parts: SplitResult | None) -> None:
    if parts is not None and "@" in parts.netloc:
        raise UsageError(
            f"{what} must hold no user name and no password, since files and images show it, got "
            f"one for {parts.hostname}. Leave it out, and let the network decide who may read."
        )


def _parts(url: str | None) -> SplitResult | None:
    """A URL's parts; None where it has no host, or what none can have."""
    try:
        parts = urlsplit(url or "")
        port = parts.port
    except ValueError:  # of brackets, or of a port over 65535
        return None
    is_plain = url is not None and url.isprintable() and " " not in url
    return parts if is_plain and parts.hostname and port != 0 else None


def check_file(name: str) -> None:
    """Check the name of an archive that is fetched.

    Raises:
        UsageError: It would have to be written otherwise in a URL.
    """
    if not _FILE.fullmatch(name):
        raise UsageError(
            f"an archive that is fetched must be named with letters, digits, . _ and -, got "
            f"{name!r}. Rename and sign it."
        )


def check_folder(folder: Path) -> None:
    """Check a folder that is written into.

    Raises:
        UsageError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} must be a folder, got a file. Choose another with --out.")
