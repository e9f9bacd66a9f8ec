"""What this machine lacks."""

from dataclasses import asdict

from marship.cli.app import app
from marship.cli.report import Report, reported
from marship.cli.server import PANEL


@app.command(rich_help_panel=PANEL)
@reported
def doctor() -> Report:
    """Look at Java, packages, cores, memory, limits and ports, and tell what to mend."""
    from marship.cli import tables
    from marship.operate.doctor import examine

    found = examine()
    rows = [(one.state, one.subject, one.found, one.advice) for one in found]
    is_ready = all(one.is_ok for one in found)
    return Report(
        {"is_ready": is_ready, "findings": [asdict(one) for one in found]},
        lambda: tables.grid(("", "what", "found", "advice"), rows),
        is_failure=not is_ready,
    )
