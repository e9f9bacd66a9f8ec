"""The process that serves a candidate without an engine: `marship host`, told where it listens.

    python -P -m marship.operate.tune.hosted ARCHIVE HOME TOKEN_FILE

It writes one line of JSON when clients can connect, or why it cannot serve. Where standard input
ends, so does the server: nothing goes on if tuning is killed.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from marship import storage
from marship.engines.standalone import host
from marship.engines.standalone.settings import HostSettings
from marship.errors import MarshipError


def main(archive: str, home: str, token_file: str) -> None:
    """Serve until SIGTERM, or the end of standard input."""
    threading.Thread(target=_await_end, daemon=True).start()
    settings = HostSettings(
        home=Path(home),
        address="127.0.0.1:0",
        metrics_address="127.0.0.1:0",
        require_token=Path(token_file),
        grace_s=1.0,
    )
    try:
        with storage.explained(Path(home)):
            host.run([archive], settings, lambda serving: _say(url=serving.url))
    except MarshipError as error:
        _say(fault=str(error), code=error.code)


def _await_end() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by the buffer, whose lock Python waits a second for
    os.kill(os.getpid(), signal.SIGTERM)


def _say(**fact: str) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
