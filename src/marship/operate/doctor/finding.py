"""One thing that was looked at."""

from dataclasses import dataclass

OK, NOTE, MEND = "ok", "note", "mend"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        subject: What was looked at, in a word or two.
        found: What is there.
        state: "ok"; "note", where it works and could do better; "mend", where it does not work.
        advice: What to do; empty where all is well.

    Example:
        >>> Finding("memory", "0.2 GB free", "mend", "End other programs.").is_ok
        False
    """

    subject: str
    found: str
    state: str = OK
    advice: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether a server can run so."""
        return self.state != MEND
