"""`python -m marship` is the command `marship`."""

import gc
import sys

INTERRUPTED = 130


def main() -> None:
    """The console script; Ctrl-C ends it without a stack trace while it still loads, too."""
    gc.set_threshold(50_000, 20, 100)  # a command ends soon, and what it imports stays
    try:
        from marship import cli
    except KeyboardInterrupt:  # nothing has begun
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
