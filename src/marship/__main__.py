"""`python -m marship` is the command `marship`."""

import sys

INTERRUPTED = 130


def main() -> None:
    """The console script; Ctrl-C ends it without a stack trace while it still loads, too."""
    try:
        from marship import cli
    except KeyboardInterrupt:  # nothing has begun
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
