"""Python, and the packages that marship asks for."""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement

from marship.operate.doctor.finding import MEND, NOTE, Finding

EXTRAS = {
    "image": "pictures",
    "speech": "sounds",
    "text": "texts for models of transformers",
    "private": "encrypted inputs",
    "grpc": "gRPC",
    "ray": "many machines",
    "recipes": "the recipes of `marship new`",
}
"""Those that a reader chooses, and what for."""
_CLASSIFIER = re.compile(r"Programming Language :: Python :: (\d+\.\d+)")


def python() -> Finding:
    """The version of Python."""
    known = metadata.metadata("marship").get_all("Classifier") or []
    tested = [match[1] for line in known if (match := _CLASSIFIER.fullmatch(line))]
    this = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = f"{sys.version.split()[0]}, {sys.executable}"
    if tested and this not in tested:
        advice = f"Make the environment with one that is tested: {', '.join(tested)}."
        return Finding("Python", found, NOTE, advice)
    return Finding("Python", found)


def packages() -> Iterator[Finding]:
    """What every installation needs, then each extra."""
    wanted = _wanted()
    yield _core(wanted[None])
    for extra, purpose in EXTRAS.items():
        missing, wrong = _lacking(wanted[extra])
        subject, advice = f"marship[{extra}]", f"pip install 'marship[{extra}]'"
        if wrong:
            yield Finding(subject, "; ".join(wrong), MEND, f"{advice} installs what it needs.")
        elif missing:
            yield Finding(
                subject, f"not installed: {', '.join(missing)}", NOTE, f"{advice} for {purpose}."
            )
        else:
            yield Finding(subject, "installed")


def _core(wanted: Iterable[Requirement]) -> Finding:
    missing, wrong = _lacking(wanted)
    if not missing and not wrong:
        return Finding("marship", "all that it needs is installed")
    found = "; ".join([*(f"no {name}" for name in missing), *wrong])
    return Finding("marship", found, MEND, "pip install --upgrade marship installs what it needs.")


def _wanted() -> defaultdict[str | None, list[Requirement]]:
    """Requirements by extra; None is those of every installation."""
    found: defaultdict[str | None, list[Requirement]] = defaultdict(list)
    for line in metadata.requires("marship") or ():
        wanted = Requirement(line)
        if wanted.name == "marship":
            continue  # an extra of extras, which are listed themselves
        for extra in (None, *EXTRAS):
            is_meant = wanted.marker is None or wanted.marker.evaluate({"extra": extra or ""})
            if is_meant and (extra is None or wanted not in found[None]):
                found[extra].append(wanted)
    return found


def _lacking(wanted: Iterable[Requirement]) -> tuple[list[str], list[str]]:
    """Names of packages that are not installed, and what is wrong with versions of others."""
    missing, wrong = [], []
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            missing.append(one.name)
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version} instead of {one.specifier}")
    return missing, wrong
