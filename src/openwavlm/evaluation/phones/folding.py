"""One inventory for alignments of different origin: stress, positions, silences, and TIMIT's 61 phones as 39."""

import re
from collections.abc import Iterable

from openwavlm.evaluation.phones.alignments import Segment

FOLDINGS = ("none", "arpabet", "timit39")
SILENCE = "sil"
SILENCES = frozenset(
    {
        *("", "sil", "sp", "spn", "nsn", "ssil", "silence", "pau", "epi", "h#", "#h", "#"),
        *("<eps>", "<sil>", "<sp>", "<silence>", "<p:>", "<pau>", "<spn>", "_"),
    }
)
_POSITION = re.compile(r"_[BEIS]$")
_STRESSED = re.compile(r"([a-z]{2})[012]")
# Lee and Hon (1989), table 1: what is not listed keeps its name. The glottal stop is left out altogether.
_CLOSURES = ("pcl", "tcl", "kcl", "bcl", "dcl", "gcl")
_TIMIT = dict.fromkeys(_CLOSURES, SILENCE) | {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "ux": "uw", "zh": "sh",
    "el": "l", "em": "m", "en": "n", "nx": "n", "eng": "ng",
}  # fmt: skip
_LEFT_OUT = "q"


def folded(segments: Iterable[Segment], folding: str) -> list[Segment]:
    """Renames the phones of an alignment.

    Args:
        segments: As a file has them.
        folding: `none`; `arpabet`: small letters, without stress digits (`AH0` → `ah`) and Kaldi's positions (`AH_B`), all silences
            and noises one `sil`; `timit39`: the usual 39 classes of TIMIT's 61, where closures are silence and `q` is no phone.

    Raises:
        ValueError: If there is no such folding.
    """
    if folding not in FOLDINGS:
        raise ValueError(f"folding must be one of {', '.join(FOLDINGS)}, but is {folding!r}: correct the name")
    if folding == "none":
        return list(segments)
    renamed = [segment._replace(phone=_plain(segment.phone)) for segment in segments]
    if folding == "arpabet":
        return renamed
    return [s._replace(phone=_TIMIT.get(s.phone, s.phone)) for s in renamed if s.phone != _LEFT_OUT]


def _plain(phone: str) -> str:
    phone = _POSITION.sub("", phone.strip()).lower()
    if phone in SILENCES:
        return SILENCE
    stressed = _STRESSED.fullmatch(phone)
    return stressed[1] if stressed else phone


def is_silence(phone: str) -> bool:
    """Whether a name, folded or not, is one of a silence, a noise or nothing."""
    return phone.strip().lower() in SILENCES
