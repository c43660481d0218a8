"""Speech with a phone for every model frame: what probes are fitted, chosen and judged on, and proof that it was not trained on."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.audio.frames import FRAME_RATE_HZ, num_frames, num_samples_of
from openwavlm.audio.read import decode_or_stop
from openwavlm.shards.index import Index
from openwavlm.shards.reader import UnreadableAudio
from openwavlm.shards.splits import audio_in

log = logging.getLogger(__name__)

_MAX_SKIP_RATE = 0.001
Audio = np.ndarray | Path | Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class ProbeUtterance:
    """One utterance of a probe.

    Attributes:
        audio: int16 (samples,) at 16 kHz, or the file that has it, or a function without arguments that returns it.
        phones: Integers (frames,): number of the phone in the set's inventory; −1 where there is none.
        speaker: Who speaks.
        name: What messages call it.
    """

    audio: Audio
    phones: np.ndarray
    speaker: str
    name: str = ""

    @property
    def frames(self) -> int:
        """Number of model frames."""
        return len(self.phones)

    def recorded(self) -> np.ndarray:
        """The audio as it is stored, int16 (samples,).

        Raises:
            ValueError: If it is not one-dimensional int16, or does not have the frames that `phones` label.
        """
        if isinstance(self.audio, np.ndarray):
            samples = self.audio
        else:
            samples = decode_or_stop(self.audio).samples if isinstance(self.audio, Path) else self.audio()
        if samples.ndim != 1 or samples.dtype != np.int16:
            raise ValueError(f"probe audio must be int16 (samples,), but {self.name!r} is {samples.dtype} {samples.shape}")
        if num_frames(len(samples)) != self.frames:
            raise ValueError(
                f"a probe utterance needs one phone a model frame, but {self.name!r} has {num_frames(len(samples))} frames and "
                f"{self.frames} phones: label it by alignments.frame_phones, with the frames of this audio"
            )
        return samples

    def waveform(self) -> np.ndarray:
        """The audio up to its last frame's end, int16 (320 (frames − 1) + 400,)."""
        return self.recorded()[: num_samples_of(self.frames)]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Utterances with one inventory of phones.

    Attributes:
        utterances: At least one; those without a frame are refused.
        inventory: Names of the phones, the same in the training, dev and test set of one probe.

    Raises:
        ValueError: If there is no utterance, one has no frame, or one has a phone outside the inventory.
    """

    utterances: tuple[ProbeUtterance, ...]
    inventory: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "utterances", tuple(self.utterances))
        object.__setattr__(self, "inventory", tuple(self.inventory))
        if not self.utterances:
            raise ValueError("a probe set needs at least one utterance, but has none: check the alignments' paths")
        for utterance in self.utterances:
            if utterance.frames == 0:
                raise ValueError(
                    f"a probe utterance has at least one frame (25 ms), but {utterance.name!r} has none: leave it out"
                )
            if utterance.phones.min() < -1 or utterance.phones.max() >= len(self.inventory):
                raise ValueError(
                    f"phones are numbers of the {len(self.inventory)} in the inventory or −1, but {utterance.name!r} has "
                    f"{utterance.phones.min()} … {utterance.phones.max()}: number all sets by one inventory"
                )

    def __len__(self) -> int:
        return len(self.utterances)

    @cached_property
    def frames(self) -> int:
        """Frames of all utterances, with a phone or without."""
        return sum(utterance.frames for utterance in self.utterances)

    @property
    def seconds(self) -> float:
        """Duration, counted in frames of 20 ms."""
        return self.frames / FRAME_RATE_HZ

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers in order."""
        return tuple(sorted({utterance.speaker for utterance in self.utterances}))

    @cached_property
    def pcm(self) -> np.ndarray:
        """uint64 (utterances,): identity of each utterance's audio, as in the index; reads all of it once."""
        return np.array([pcm_of(utterance.recorded()) for utterance in self.utterances], dtype=np.uint64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over audio, phones, speakers and inventory, in order."""
        digest = hashlib.blake2b("\n".join(self.inventory).encode(), digest_size=16)
        digest.update(self.pcm.tobytes())
        for utterance in self.utterances:
            digest.update(f"{utterance.speaker}\n{utterance.frames}\n".encode())
            digest.update(np.ascontiguousarray(utterance.phones, dtype="<i4").tobytes())
        return digest.hexdigest()

    def readable(self) -> "ProbeSet":
        """Without what cannot be read, as `readable` of its utterances."""
        return ProbeSet(tuple(self.utterances[number] for number in readable(self.utterances)), self.inventory)

    def spread_over_speakers(self, seconds: float) -> "ProbeSet":
        """As many utterances, taken in turn from each speaker, as `seconds` allow (at least one); itself if all fit."""
        if self.seconds <= seconds:
            return self
        turn: Counter[str] = Counter()
        order = []
        for number, utterance in enumerate(self.utterances):
            order.append((turn[utterance.speaker], number))
            turn[utterance.speaker] += 1
        chosen: list[int] = []
        frames = 0
        for _, number in sorted(order):
            frames += self.utterances[number].frames
            if chosen and frames > seconds * FRAME_RATE_HZ:
                break
            chosen.append(number)
        return ProbeSet(tuple(self.utterances[number] for number in sorted(chosen)), self.inventory)


def readable(utterances: Sequence[ProbeUtterance]) -> list[int]:
    """Numbers of the utterances that can be read; each is read once, and the others are named in warnings.

    What is compared must lack the same utterances, so they are left out before anything is measured.

    Raises:
        ValueError: If more than one in a thousand, and more than one, cannot be read.
    """
    kept = []
    for number, utterance in enumerate(utterances):
        try:
            utterance.recorded()
            kept.append(number)
        except UnreadableAudio as error:
            log.warning("skipped: %s", error)
    lost = len(utterances) - len(kept)
    if lost > max(1, _MAX_SKIP_RATE * len(utterances)):
        raise ValueError(
            f"at most a share of {_MAX_SKIP_RATE:g} of the utterances, or one, may be unreadable, but {lost} of {len(utterances)} are: "
            "run data_prep/verify.py on the shards and restore what it names"
        )
    return kept


def pcm_of(samples: np.ndarray) -> int:
    """Identity of audio as the index stores it: the first 64 bits of the MD5 of its int16 samples."""
    return pcm_id(pcm_md5(samples))


def check_disjoint_speakers(**sets: ProbeSet) -> None:
    """Refuses sets that share a speaker: what is measured on a voice that was fitted on is no evidence (DESIGN §8).

    Raises:
        ValueError: Naming two sets and a speaker of both.
    """
    seen: dict[str, str] = {}
    for name, probe_set in sets.items():
        for speaker in probe_set.speakers:
            if speaker in seen:
                raise ValueError(
                    f"training, dev and test speakers must be different people, but {speaker!r} is in {seen[speaker]} and {name}: "
                    "split by speaker"
                )
        seen |= dict.fromkeys(probe_set.speakers, name)


def contamination(
    test: ProbeSet, trained_on: Iterable[tuple[Index, np.ndarray | None]], *, allow_overlap: bool = False
) -> list[str]:
    """Looks the test audio up in what a model was trained on.

    Args:
        test: The set that figures are read on.
        trained_on: Each index of the run with the mask bool (rows,) of its training rows; None for all rows.
        allow_overlap: Report an overlap instead of refusing it.

    Returns:
        Names of the test utterances that are training audio, to the sample, or clips inside a joined row of it.

    Raises:
        ValueError: If there are some, unless `allow_overlap`.
    """
    found = np.zeros(len(test), dtype=bool)
    for index, training in trained_on:
        found |= audio_in(test.pcm, index, training)
    names = [test.utterances[number].name or f"utterance {number}" for number in np.flatnonzero(found)]
    if names and not allow_overlap:
        raise ValueError(
            f"test audio must be unheard by the model, but {len(names)} of {len(test)} test utterances are in its training data "
            f"({_first(names)}): take them out of the training data or the test, or set allow_overlap=true to see the figures anyway"
        )
    if names:
        log.warning(
            f"{len(names)} of {len(test)} test utterances are in the training data ({_first(names)}): figures are no evidence"
        )
    return names


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
