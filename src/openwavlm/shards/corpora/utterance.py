"""Utterance of an audio file, as corpus readers yield it."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from openwavlm.runtime.randomness import stable_hash


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech in an audio file.

    Attributes:
        name: Identity within its source, on every machine: the relative path without extension, plus the segment and the channel.
        path: Audio file relative to the corpus root (absolute if it lies elsewhere).
        start_s, end_s: Place in the file, seconds; None for the end of the file.
        speaker, recording, text, language: Names within the source, transcript and language code; empty when unknown.
        extra: Other fields of the corpus, copied to the shard's JSON.
        channel: Channel of the file, from 0; None for the setting `channels`.
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
        """The same stretch of one channel, of the given speaker or `SPEAKER#CHANNEL` (`RECORDING#CHANNEL` where unknown)."""
        own = speaker or f"{self.speaker or self.recording}#{channel}"
        return replace(self, name=f"{self.name}#{channel}", speaker=own, channel=channel)


def portable(text: str) -> str:
    """Text for a table of one line an entry: line breaks, tabs and undecodable bytes of file names are replaced."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def utterance_key(source: str, name: str) -> str:
    """Key of an utterance in its shard: readable stem and 64 bits of hash; stable, `[A-Za-z0-9_-]+`, below tar's 100 characters."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rpartition("/")[2])[:48]
    return f"{stem}-{stable_hash(f'{source}/{name}'):016x}"
