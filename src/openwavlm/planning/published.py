"""Utilisation that published pre-trainings reached, from which `openwavlm plan` derives its range.

Utilisation is operations a second, counted as in `model/costs.py`, over the GPU's dense peak in 16 bits. Operations are those of
`model=base` and `model=large` in rows of 15.6 s; `tests/unit/test_budget.py` derives each figure again from the published speed.
The batches of the last two runs are cropped to their shortest row, so their utilisation is an upper bound.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRun:
    """A published pre-training.

    Attributes:
        what: Model, hardware and speed.
        source: Where the speed is from.
        utilisation: Share of the peak.
    """

    what: str
    source: str
    utilisation: float


PUBLISHED = (
    # 100,000 · 2,800 s / (32 · 9.5 h) = 256 s of audio a second and GPU
    PublishedRun("HuBERT Base, 32 V100, 9.5 h for 100,000 updates of 2,800 s", "HuBERT, arXiv 2106.07447", 0.094),
    # 400,000 · 2,800 s / 160 h = 1,944; an easier model: no gated bias, no mixing
    PublishedRun("HuBERT Base, 16 H100, 10 h for 400,000 updates of 2,800 s", "README of github.com/mxmpl/minimal_hubert", 0.091),
    PublishedRun(
        "WavLM Large, 8 H100, compiled layers, 605 s of audio a second and GPU", "timing notes of ESPnet's wavlm1 recipe", 0.073
    ),
    PublishedRun("the same without compiled layers, 452 s of audio a second and GPU", "the same notes", 0.055),
)
