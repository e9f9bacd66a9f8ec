"""Words with the time at which they were said."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Segment:
    """Words that belong together, and when they were said.

    Attributes:
        start_s: In the recording, or in the chunk that a reader decoded.
        end_s: Likewise.
        text: The words.
        confidence: From 0 to 1.
    """

    start_s: float
    end_s: float
    text: str
    confidence: float

    def moved(self, seconds: float) -> "Segment":
        """The same, said later."""
        return replace(self, start_s=self.start_s + seconds, end_s=self.end_s + seconds)

    def facts(self) -> dict[str, object]:
        """As an answer tells it."""
        return {
            "start": round(self.start_s, 3),
            "end": round(self.end_s, 3),
            "text": self.text,
            "confidence": round(self.confidence, 4),
        }
