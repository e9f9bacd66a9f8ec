"""A segment of a transcript, with timestamps."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a transcript.

    Attributes:
        start_s: Start in the recording, or in the chunk.
        end_s: End, likewise.
        text: The words.
        confidence: From 0 to 1.
    """

    start_s: float
    end_s: float
    text: str
    confidence: float

    def moved(self, seconds: float) -> "Segment":
        """The segment shifted in time."""
        return replace(self, start_s=self.start_s + seconds, end_s=self.end_s + seconds)

    def facts(self) -> dict[str, object]:
        """The segment for a response."""
        return {
            "start": round(self.start_s, 3),
            "end": round(self.end_s, 3),
            "text": self.text,
            "confidence": round(self.confidence, 4),
        }
