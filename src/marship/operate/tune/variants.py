"""Archives of candidates: other settings, and other variants of the model."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from marship.errors import PackageError
from marship.operate.tune.candidate import Candidate
from marship.packaging import variants
from marship.packaging.variants import Variants
from marship.trust import archive as archives
from marship.trust import extract
from marship.trust.archive import Archive


@dataclass(frozen=True, slots=True)
class TunedArchive:
    """The archive that is tuned, and its other variants.

    Attributes:
        archive: The archive as it is shipped.
        run_dir: Its run folder; None without other variants.
        variants: The names of all.
        cores: Usable cores.
        stamp: Of the archive's file, which has to stay the same.
    """

    archive: Archive
    run_dir: Path | None
    variants: Variants
    cores: int
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, archive: Archive, run_dir: Path | None, cores: int) -> "TunedArchive":
        """Find the variants.

        Raises:
            MarshipError: The run folder is not the archive's.
        """
        found = Variants() if run_dir is None else variants.find(archive, run_dir)
        return cls(archive, run_dir, found, cores, _stamp(archive.path))

    def check(self) -> None:
        """Check that the archive is still the file that is tuned.

        Raises:
            PackageError: It was replaced, changed or removed.
        """
        try:
            now: tuple[int, ...] = _stamp(self.archive.path)
        except FileNotFoundError:
            now = ()
        if now != self.stamp:
            raise PackageError(
                f"{self.archive.path} must stay as it is while it is tuned, got "
                f"{'another file' if now else 'no file'} there. Run tune again."
            )

    def shipped(self, host: str) -> Candidate:
        """The archive's own settings."""
        return Candidate.of(self.archive.config, self.variants.own, self.cores, host)

    def write(self, candidate: Candidate, target: Path) -> Archive:
        """Write the archive of a candidate; all that does not differ stays byte for byte.

        Raises:
            MarshipError: The variant cannot take the place of the archive's, or a file changed.
        """
        config = candidate.config(self.archive.config, self.cores)
        name = archives.config_name(self.archive.manifest)
        changed = {name: yaml.safe_dump(config, sort_keys=False).encode()}
        if self.run_dir is not None and candidate.variant != self.variants.own:
            changed |= variants.files(self.archive, self.run_dir, candidate.variant)
        extract.rewrite(self.archive.path, self.archive.plain, target, files=changed)
        return archives.read(target)


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
