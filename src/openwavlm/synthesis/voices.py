"""Speakers of the embedded corpus: voices (a voice variant of espeak-ng with pitch and rate) in accents (its English voices).

Three splits share no voice: train; dev with two voices, used to choose layers and rates; test with four voices, used only for the
final figures. One accent occurs in test only. Variants with an echo are left out, since the room belongs to the channel; so are
Klatt synthesis and whispers, which draw their noise from the C library's global generator.
"""

from dataclasses import dataclass

# Name of ours → voice file of espeak-ng.
TRAINING_ACCENTS = {
    "us": "gmw/en-US",
    "rp": "gmw/en-GB-x-rp",
    "scotland": "gmw/en-GB-scotland",
    "lancaster": "gmw/en-GB-x-gbclan",
}
HELD_OUT_ACCENTS = {"caribbean": "gmw/en-029"}
ACCENTS = TRAINING_ACCENTS | HELD_OUT_ACCENTS

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng.

    Attributes:
        name: Name of the variant in espeak-ng.
        split: `train`, `dev` or `test`.
        pitch: 0 … 99, where 50 is the variant's own.
        rate_wpm: Words a minute.
    """

    name: str
    split: str
    pitch: int
    rate_wpm: int


VOICES = (
    Voice("Alex", "train", 48, 168),
    Voice("Andrea", "train", 40, 176),
    Voice("Andy", "train", 50, 178),
    Voice("Annie", "train", 50, 160),
    Voice("Denis", "train", 55, 182),
    Voice("Gene", "train", 44, 164),
    Voice("Jacky", "train", 52, 172),
    Voice("Michael", "train", 47, 186),
    Voice("Mike", "train", 50, 160),
    Voice("antonio", "train", 44, 172),
    Voice("belinda", "train", 45, 174),
    Voice("boris", "train", 50, 170),
    Voice("ed", "train", 53, 182),
    Voice("f1", "train", 52, 164),
    Voice("grandma", "train", 45, 150),
    Voice("grandpa", "train", 46, 152),
    Voice("ian", "train", 55, 168),
    Voice("john", "train", 48, 176),
    Voice("kaukovalta", "train", 54, 162),
    Voice("m1", "train", 50, 175),
    Voice("m3", "train", 60, 190),
    Voice("m5", "train", 40, 158),
    Voice("m6", "train", 56, 170),
    Voice("m7", "train", 46, 185),
    Voice("m8", "train", 50, 188),
    Voice("max", "train", 62, 166),
    Voice("paul", "train", 50, 166),
    Voice("quincy", "train", 42, 178),
    Voice("rob", "train", 43, 180),
    Voice("steph", "train", 48, 180),
    Voice("travis", "train", 57, 170),
    Voice("zac", "train", 35, 162),
    Voice("anika", "dev", 42, 170),
    Voice("victor", "dev", 50, 165),
    Voice("Nguyen", "test", 50, 172),
    Voice("aunty", "test", 47, 160),
    Voice("m4", "test", 54, 180),
    Voice("shelby", "test", 50, 168),
)


@dataclass(frozen=True)
class Speaker:
    """A voice in an accent."""

    voice: Voice
    accent: str

    @property
    def name(self) -> str:
        """`VOICE_ACCENT`."""
        return f"{self.voice.name}_{self.accent}"

    @property
    def espeak_voice(self) -> str:
        """Name in espeak-ng."""
        return f"{ACCENTS[self.accent]}+{self.voice.name}"


def speakers_of(split: str) -> list[Speaker]:
    """Every voice of a split in each of its accents: the training accents, in `test` the held-out accent as well."""
    accents = ACCENTS if split == "test" else TRAINING_ACCENTS
    return [Speaker(voice, accent) for voice in VOICES if voice.split == split for accent in accents]
