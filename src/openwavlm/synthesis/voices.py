"""Speakers of the embedded corpus: voices (a voice variant of espeak-ng with pitch and rate) in accents (its English voices).

The splits share no voice: train; dev with two, for choices of layers and rates; test with four, for the final figures. One accent occurs
in test only. Variants with an echo are left out, since the room belongs to the channel; so are Klatt synthesis and whispers, which draw
their noise from the C library's global generator.
"""

from dataclasses import dataclass

# Name of ours → voice file of espeak-ng.
_BRITISH = {"rp": "gmw/en-GB-x-rp", "scotland": "gmw/en-GB-scotland", "lancaster": "gmw/en-GB-x-gbclan"}
TRAINING_ACCENTS = {"us": "gmw/en-US"} | _BRITISH
HELD_OUT_ACCENTS = {"caribbean": "gmw/en-029"}
ACCENTS = TRAINING_ACCENTS | HELD_OUT_ACCENTS
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng: name of the variant, split, pitch (0 … 99, 50 is the variant's own), words a minute."""

    name: str
    split: str
    pitch: int
    rate_wpm: int


# Name, pitch and rate of the voices of each split.
_TABLE = {
    "train": """
Alex 48 168, Andrea 40 176, Andy 50 178, Annie 50 160, Denis 55 182, Gene 44 164, Jacky 52 172, Michael 47 186, Mike 50 160,
antonio 44 172, belinda 45 174, boris 50 170, ed 53 182, f1 52 164, grandma 45 150, grandpa 46 152, ian 55 168, john 48 176,
kaukovalta 54 162, m1 50 175, m3 60 190, m5 40 158, m6 56 170, m7 46 185, m8 50 188, max 62 166, paul 50 166, quincy 42 178,
rob 43 180, steph 48 180, travis 57 170, zac 35 162
""",
    "dev": "anika 42 170, victor 50 165",
    "test": "Nguyen 50 172, aunty 47 160, m4 54 180, shelby 50 168",
}
VOICES = tuple(
    Voice(name, split, int(pitch), int(rate_wpm))
    for split, entries in _TABLE.items()
    for name, pitch, rate_wpm in map(str.split, entries.split(","))
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
    """Every voice of a split in each of its accents: those of training, in `test` the held-out accent too."""
    accents = ACCENTS if split == "test" else TRAINING_ACCENTS
    return [Speaker(voice, accent) for voice in VOICES if voice.split == split for accent in accents]
