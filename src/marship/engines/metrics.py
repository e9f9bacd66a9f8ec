"""What a server's metrics say of the models, as every worker of marship.serving reports them."""

import re

_ENDED = re.compile(r"^marship_joining_ended\{(.*)\} (\S+)$", re.MULTILINE)
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
