"""What a corpus reader yields: one utterance of one audio file."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech in an audio file.

    Attributes:
        name: What identifies it within its source, on every machine: the relative path without extension, plus the segment and
            the channel.
        path: Audio file relative to the corpus root (absolute if it lies elsewhere).
        start_s: Where it begins, seconds.
        end_s: Where it ends; None for the end of the file.
        speaker: Name within the source; empty when unknown.
        recording: The uninterrupted recording that it comes from.
        text: Transcript; empty when unknown.
        language: Language code; empty when unknown.
        extra: Any other fields of the corpus; they travel into the shard's JSON.
        channel: The only channel of the file that is meant, from 0; None for what the setting `channels` says.
    """

    name: str
    path: str
    start_s: float = 0.0
    end_s: float | None = None
    speaker: str = ""
    recording: str = ""
    text: str = ""
    language: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    channel: int | None = None

    def of_channel(self, channel: int, *, speaker: str = "") -> "Utterance":
        """The same stretch of one channel, which has a speaker of its own: the given one, or `SPEAKER#CHANNEL`.

        Where the speaker is unknown, that of a channel is named by its recording.
        """
        own = speaker or f"{self.speaker or self.recording}#{channel}"
        return replace(self, name=f"{self.name}#{channel}", speaker=own, channel=channel)


def portable(text: str) -> str:
    """The text with what a one-line-per-entry table cannot hold replaced: line breaks, tabs and undecodable file names."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
