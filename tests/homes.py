"""A server's home as a client finds it, without the server."""

import os
from pathlib import Path

from marship.engines import processes
from marship.engines.home import Home, ServerRecord

NOBODY = "http://127.0.0.1:9"


def of_a_server(
    folder: Path,
    *,
    inference_url: str = NOBODY,
    management_url: str = NOBODY,
    trust: str | None = None,
) -> Home:
    """The home of a server that runs at these addresses; its store is the folder, too."""
    pid, home = os.getpid(), Home(folder)
    home.write_record(
        ServerRecord(
            pid=pid,
            created=processes.start_time(pid),
            boot=processes.boot_id(),
            inference_url=inference_url,
            management_url=management_url,
            metrics_url=NOBODY,
            model_store=str(folder),
            tmp=str(folder / "tmp"),
            trust=trust,
        )
    )
    return home
