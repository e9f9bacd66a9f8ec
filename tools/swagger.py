"""Fetch the files of Swagger UI for /docs, by npm: this version, with this hash, nothing else.

`npm pack` takes the package's archive alone: no dependencies, and no scripts of theirs are run.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME, VERSION = "swagger-ui-dist", "5.35.0"
SHA512 = "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ=="
"""In base64, as `npm view swagger-ui-dist dist.integrity` shows it."""
FILES = (
    "LICENSE",
    "NOTICE",
    "swagger-ui-bundle.js",
    "swagger-ui-bundle.js.LICENSE.txt",
    "swagger-ui.css",
)
FOLDER = Path(__file__).parents[1] / "src/marship/engines/page/docs/swagger"


def main() -> None:
    """Fetch the archive, hold it against the hash, and put the files into their folder."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm must be installed to fetch Swagger UI, got none.")
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=".swagger-") as scratch:
        words = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--pack-destination", scratch]
        subprocess.run(words, check=True, cwd=scratch, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            sys.exit(f"{archive.name} must have the SHA-512 {SHA512}, got {found}.")
        made = Path(scratch, "files")
        made.mkdir()
        with tarfile.open(archive) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/{name}")
                assert member is not None, name  # noqa: S101  a file, by the hash
                (made / name).write_bytes(member.read())
        shutil.rmtree(FOLDER, ignore_errors=True)
        made.rename(FOLDER)
    print(f"Swagger UI {VERSION} is in {FOLDER}")


if __name__ == "__main__":
    main()
