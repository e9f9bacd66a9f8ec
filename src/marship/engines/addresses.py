"""The environment variables with a server's addresses and tokens."""

from collections.abc import Mapping

TOKEN_VARIABLES: Mapping[str, str] = {
    "inference": "MARSHIP_INFERENCE_TOKEN",
    "management": "MARSHIP_MANAGEMENT_TOKEN",
}
URL_VARIABLES: Mapping[str, str] = {
    "inference": "MARSHIP_INFERENCE_URL",
    "management": "MARSHIP_MANAGEMENT_URL",
    "metrics": "MARSHIP_METRICS_URL",
}
