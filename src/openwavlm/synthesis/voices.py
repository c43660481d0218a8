"""Speakers of the embedded corpus, and their voices: a speaker in each of several accents.

A speaker is a voice variant of espeak-ng with a pitch, a rate and a size of the vocal tract; every accent is the same speaker. The splits
share neither a speaker nor a variant: train; dev, for choices of layers and rates; test, for the final figures. One accent occurs in test
only. Variants with an echo are left out, since the room belongs to the channel; so are Klatt synthesis and whispers, which draw their
noise from the C library's global generator.
"""

from dataclasses import dataclass

# Name of ours → voice file of espeak-ng.
_BRITISH = {"rp": "gmw/en-GB-x-rp", "scotland": "gmw/en-GB-scotland", "lancaster": "gmw/en-GB-x-gbclan"}
TRAINING_ACCENTS = {"us": "gmw/en-US"} | _BRITISH
HELD_OUT_ACCENTS = {"caribbean": "gmw/en-029"}
ACCENTS = TRAINING_ACCENTS | HELD_OUT_ACCENTS
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Speaker:
    """A speaker in all accents.

    Attributes:
        name: The variant, and for a second speaker with the same one, `VARIANT-2`.
        split: Train, dev or test.
        variant: Voice variant of espeak-ng.
        pitch: 0 … 99, where 50 is the variant's own; the recording's is higher by `formant_scale`.
        rate_wpm: Words a minute.
        formant_scale: Frequencies of the recording over those of the variant; above 1 a shorter vocal tract.
        accents: Accents in which the speaker is recorded.
    """

    name: str
    split: str
    variant: str
    pitch: int
    rate_wpm: int
    formant_scale: float
    accents: tuple[str, ...]


# Variant, and of each of its speakers pitch, rate and formant scale.
_TABLE = {
    "train": """
Alex 48 168 0.94 62 180 1.06, Andrea 40 176 1.02 54 162 0.90, Andy 50 178 1.08 36 164 0.96, Annie 50 160 0.90 36 172 1.02,
Denis 55 182 1.04 41 168 0.92, Gene 44 164 0.98 58 176 1.10, Jacky 52 172 1.10 38 158 0.98, Michael 47 186 0.96 61 172 1.08,
Mike 50 160 0.94 36 172 1.06, antonio 44 172 1.02 58 158 0.90, belinda 45 174 1.08 59 160 0.96, boris 50 170 0.92 36 182 1.04,
ed 53 182 1.04 39 168 0.92, f1 52 164 0.98 38 176 1.10, grandma 45 150 1.10 59 162 0.98, grandpa 46 152 0.96 60 164 1.08,
ian 55 168 0.94 41 180 1.06, john 48 176 1.02 62 162 0.90, kaukovalta 54 162 1.04 40 174 0.92, m1 50 175 0.92 36 161 1.04,
m3 60 190 1.04 46 176 0.92, m5 40 158 0.98 54 170 1.10, m6 56 170 1.10 42 182 0.98, m7 46 185 0.96 60 171 1.08,
m8 50 188 0.94 36 174 1.06, max 62 166 1.02 48 178 0.90, paul 50 166 1.08 36 178 0.96, quincy 42 178 0.92 56 164 1.04,
rob 43 180 1.04 57 166 0.92, steph 48 180 0.98 62 166 1.10, travis 57 170 1.10 43 182 0.98, zac 35 162 0.88 49 174 0.96
""",
    "dev": """
anika 42 170 0.94, victor 50 165 1.04, Storm 46 178 0.96, Tweaky 54 168 1.06, f5 48 174 1.00, pablo 50 162 0.92
""",
    "test": """
Nguyen 50 172 1.08, aunty 47 160 0.96, m4 54 180 0.92, shelby 50 168 1.00, f2 46 166 1.02, f3 52 178 0.94, gustave 55 174 1.06,
iven3 48 164 1.00, marcelo 44 170 1.10, miguel 50 182 0.96, norbert 52 158 1.02, sandro 46 176 0.94
""",
}


def _speakers() -> tuple[Speaker, ...]:
    """The table's speakers; two of one variant divide the accents, so that every variant is recorded in each accent once."""
    found = []
    for split, entries in _TABLE.items():
        accents = tuple(ACCENTS if split == "test" else TRAINING_ACCENTS)
        for entry in entries.split(","):
            variant, *numbers = entry.split()
            of_variant = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
            for number, (pitch, rate_wpm, scale) in enumerate(of_variant):
                name = f"{variant}-{number + 1}" if number else variant
                own = accents[number :: len(of_variant)]
                found.append(Speaker(name, split, variant, int(pitch), int(rate_wpm), float(scale), own))
    return tuple(found)


SPEAKERS = _speakers()


@dataclass(frozen=True)
class Voice:
    """A speaker in one accent."""

    speaker: Speaker
    accent: str

    @property
    def name(self) -> str:
        """`SPEAKER_ACCENT`."""
        return f"{self.speaker.name}_{self.accent}"

    @property
    def espeak_voice(self) -> str:
        """Name in espeak-ng."""
        return f"{ACCENTS[self.accent]}+{self.speaker.variant}"


def voices_of(split: str) -> list[Voice]:
    """Every speaker of a split in each of its accents; those of `test` have the held-out accent too."""
    return [Voice(speaker, accent) for speaker in SPEAKERS if speaker.split == split for accent in speaker.accents]
