"""Speech with a phone for every model frame, to fit, choose and judge probes on."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.audio.frames import FRAME_RATE_HZ, num_frames, num_samples_of
from openwavlm.shards.reader import UnreadableAudio

log = logging.getLogger(__name__)

_MAX_SKIP_RATE = 0.001


@dataclass(frozen=True, eq=False)
class ProbeUtterance:
    """One utterance of a probe.

    Attributes:
        audio: int16 (samples,) at 16 kHz, or a function without arguments that returns it.
        phones: Integers (frames,): number of the phone in the set's inventory; −1 where there is none.
    """

    audio: np.ndarray | Callable[[], np.ndarray]
    phones: np.ndarray
    speaker: str
    name: str = ""

    @property
    def frames(self) -> int:
        """Number of model frames."""
        return len(self.phones)

    def recorded(self) -> np.ndarray:
        """Stored audio, int16 (samples,).

        Raises:
            ValueError: If it is not one-dimensional int16, or does not have the frames that `phones` label.
        """
        samples = self.audio if isinstance(self.audio, np.ndarray) else self.audio()
        if samples.ndim != 1 or samples.dtype != np.int16:
            raise ValueError(f"probe audio must be int16 (samples,), but {self.name!r} is {samples.dtype} {samples.shape}")
        if num_frames(len(samples)) != self.frames:
            raise ValueError(
                f"a probe utterance needs one phone a model frame, but {self.name!r} has {num_frames(len(samples))} frames and "
                f"{self.frames} phones: label it by alignments.frame_phones, with the frames of this audio"
            )
        return samples

    def waveform(self) -> np.ndarray:
        """Audio up to its last frame's end, int16 (320 (frames − 1) + 400,)."""
        return self.recorded()[: num_samples_of(self.frames)]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Utterances with one inventory of phones.

    Attributes:
        utterances: At least one, each with at least one frame.
        inventory: Names of the phones, the same in the training, dev and test set of one probe.

    Raises:
        ValueError: If there is no utterance, one has no frame, or one has a phone outside the inventory.
    """

    utterances: tuple[ProbeUtterance, ...]
    inventory: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.utterances:
            raise ValueError("a probe set needs at least one utterance, but has none: check the alignments' paths")
        for utterance in self.utterances:
            if utterance.frames == 0:
                raise ValueError(f"a probe utterance needs at least one frame, but {utterance.name!r} has none: leave it out")
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
        return np.array([pcm_id(pcm_md5(utterance.recorded())) for utterance in self.utterances], dtype=np.uint64)

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
        """Drops unreadable utterances, as the function `readable`."""
        return ProbeSet(tuple(self.utterances[number] for number in readable(self.utterances)), self.inventory)

    def spread_over_speakers(self, seconds: float) -> "ProbeSet":
        """Utterances taken in turn from each speaker, as many as `seconds` allow (at least one); itself if all fit."""
        if self.seconds <= seconds:
            return self
        speakers = [utterance.speaker for utterance in self.utterances]
        chosen = in_turn(speakers, [utterance.frames for utterance in self.utterances], seconds)
        return ProbeSet(tuple(self.utterances[number] for number in chosen), self.inventory)


def in_turn(speakers: Sequence[str], frames: Sequence[int], seconds: float) -> list[int]:
    """Numbers of utterances taken in turn from each speaker, as many as `seconds` allow, at least one; ascending."""
    turn: Counter[str] = Counter()
    order = []
    for number, speaker in enumerate(speakers):
        order.append((turn[speaker], number))
        turn[speaker] += 1
    total = np.cumsum([frames[number] for _, number in sorted(order)])
    fitting = int(np.searchsorted(total, seconds * FRAME_RATE_HZ, side="right"))
    return sorted(number for _, number in sorted(order)[: max(1, fitting)])


def readable(utterances: Sequence[ProbeUtterance]) -> list[int]:
    """Numbers of the readable utterances; each is read once, so that all compared systems lack the same ones. Logs the others.

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
            "run openwavlm verify on the shards and restore the files that it names"
        )
    return kept
