"""What a server's metrics say of the models, as every worker of marship.serving reports them."""

import re

_ENDED = re.compile(r"^marship_joining_ended\{(.*)\} (\S+)$", re.MULTILINE)
_SAMPLE = re.compile(r"^(\w+)\{([^}]*)\} (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def joining_ended(figures: str) -> frozenset[tuple[str, str]]:
    """Names and versions of models that stopped batching, as batched results differed.

    Args:
        figures: The metrics, in Prometheus' text format.
    """
    found = set()
    for labels, value in _ENDED.findall(figures):
        known = dict(_LABEL.findall(labels))
        if float(value):
            found.add((known.get("model_name", ""), known.get("model_version", "")))
    return frozenset(found)


def of_versions(figures: str) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics by the model and version in their labels; of one name, their sum.

    Args:
        figures: The metrics, in Prometheus' text format.

    Example:
        >>> of_versions('ts_x{model_name="m",model_version="1.0",} 2.5')
        {('m', '1.0'): {'ts_x': 2.5}}
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, labels, value in _SAMPLE.findall(figures):
        known = dict(_LABEL.findall(labels))
        if "model_version" in known:
            sums = found.setdefault((known.get("model_name", ""), known["model_version"]), {})
            sums[name] = sums.get(name, 0.0) + float(value)
    return found
