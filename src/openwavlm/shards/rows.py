"""From clips to the rows of a shard: key, FLAC payload, JSON fields, and the members of joined clips."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.encode import encode_flac, pcm_id, pcm_md5
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.corpora.utterance import Utterance
from openwavlm.shards.tasks import JOIN_SILENCE_S

_JOIN_SILENCE = np.zeros(int(JOIN_SILENCE_S * SAMPLE_RATE_HZ), np.int16)
_FIELDS = ("num_samples", "speaker", "recording", "text", "language", "source", "start_s", "end_s", "members")


@dataclass
class Row:
    """An utterance on its way into a shard."""

    key: str
    flac: bytes
    fields: dict[str, Any]
    members: list[tuple[int, int, int, int]] = field(default_factory=list)

    def append_to(self, columns: dict[str, list[Any]], offset: int) -> None:
        """Appends the row to the columns of a done-file; names become `SOURCE/name`, unknown ones stay empty.

        Args:
            columns: Lists by name.
            offset: Where the FLAC payload begins in the tar.
        """
        source = self.fields["source"]
        values = {
            "offset": offset,
            "nbytes": len(self.flac),
            "num_samples": self.fields["num_samples"],
            "key": stable_hash(self.key),
            "pcm": pcm_id(flac_md5(self.flac)),
            "keys": self.key,
            "speaker": f"{source}/{self.fields['speaker']}" if self.fields["speaker"] else "",
            "recording": f"{source}/{self.fields['recording']}" if self.fields["recording"] else "",
            "source": source,
            "language": self.fields["language"],
        }
        for name, value in values.items():
            columns[name].append(value)


def utterance_key(source: str, name: str) -> str:
    """Key of an utterance in its shard: readable stem and 64 bits of hash; stable, `[A-Za-z0-9_-]+`, below tar's 100 characters."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rpartition("/")[2])[:48]
    return f"{stem}-{stable_hash(f'{source}/{name}'):016x}"


def make_row(good: list[tuple[Utterance, np.ndarray]], source: str) -> Row:
    """Makes a row of one clip, or of several with silence between them."""
    first, samples = good[0]
    members: list[dict[str, Any]] = []
    name = first.name
    if len(good) > 1:
        pieces, offset = [], 0
        for utterance, clip in good:
            key = utterance_key(source, utterance.name)
            member = {"key": key, "offset": offset, "num_samples": len(clip), "pcm": pcm_id(pcm_md5(clip))}
            member |= {**_segment(utterance, clip), "recording": utterance.recording}
            member |= {"text": utterance.text, "language": utterance.language}
            members.append(_extra(utterance, member.keys()) | member)
            pieces += [clip, _JOIN_SILENCE]
            offset += len(clip) + len(_JOIN_SILENCE)
        samples = np.concatenate(pieces[:-1])
        name = first.name + "+" + hashlib.blake2b("\n".join(u.name for u, _ in good).encode(), digest_size=8).hexdigest()
    same_recording = all(utterance.recording == first.recording for utterance, _ in good)
    languages = {utterance.language for utterance, _ in good}
    fields = _extra(first, _FIELDS) if len(good) == 1 else {}
    fields |= {
        "num_samples": len(samples),
        "speaker": first.speaker,
        "recording": first.recording if same_recording else "",
        "text": " ".join(utterance.text for utterance, _ in good if utterance.text),
        "language": languages.pop() if len(languages) == 1 else "",
        "source": source,
        **(_segment(first, samples) if len(good) == 1 else {"start_s": None, "end_s": None, "members": members}),
    }
    flat = [(member["offset"], member["num_samples"], stable_hash(member["key"]), member["pcm"]) for member in members]
    return Row(utterance_key(source, name), encode_flac(samples), fields, flat)


def _extra(utterance: Utterance, taken: Iterable[str]) -> dict[str, Any]:
    """What else is known of an utterance; names that are taken get a prefix."""
    fields: dict[str, Any] = {} if utterance.channel is None else {"channel": utterance.channel}
    taken = {*taken, *fields}
    for name, value in utterance.extra.items():
        free = name
        while free in taken or (free != name and free in utterance.extra):
            free = f"manifest_{free}"
        fields[free] = value
    return fields


def _segment(utterance: Utterance, clip: np.ndarray) -> dict[str, float]:
    return {"start_s": utterance.start_s, "end_s": round(utterance.start_s + len(clip) / SAMPLE_RATE_HZ, 6)}
