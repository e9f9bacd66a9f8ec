"""What clients of a cluster of Ray need to reach it."""

import json

from conformance import Host
from marship.engines.ray.head import Cluster


def host_of(server: Cluster) -> Host:
    """Where the cluster's requests go."""
    key = json.loads(server.home.key_file.read_text())["inference"]["key"]
    return Host(server.record.inference_url, key)
