"""The commands. What each needs is imported inside it, so that --help is instant."""

from marship import console
from marship.cli import archives, models, server
from marship.cli.app import app

__all__ = ["app", "archives", "main", "models", "server"]


def main() -> None:
    """The console script."""
    console.run(app)
