"""`python -m marship` is the command `marship`."""

from marship.cli import main

if __name__ == "__main__":
    main()
