"""Published figures of other runs at some update, drawn beside a run's own curves for orientation."""

import math
from dataclasses import dataclass

FEWEST_UPDATES = 10_000  # a run shorter than this is not compared with runs of hundreds of thousands


@dataclass(frozen=True)
class ReferencePoint:
    """Figures of a published run after some updates: masked cross-entropy and accuracies; None if not stated."""

    run: str
    clusters: int
    updates: int | None
    nats: float | None
    accuracy: float
    unmasked_accuracy: float | None
    outcome: str
    source: str


_NATS = math.log(2)  # of a bit
_TWICE = "ended at twice the paper's word error rate"
_SOUND = "a sound model by its authors' own account; no downstream figure"
POINTS = (
    ReferencePoint("HuBERT Base, iteration 1, 960 h", 100, 250_000, 3.329 * _NATS, 0.365, 0.049, _TWICE, "fairseq #4907"),
    ReferencePoint("HuBERT Base, iteration 1, 960 h", 100, 400_000, 3.144 * _NATS, 0.390, 0.089, _TWICE, "fairseq #4907"),
    ReferencePoint("HuBERT Base, iteration 2, 960 h", 500, 250_000, 3.712 * _NATS, 0.383, 0.635, _TWICE, "fairseq #4907"),
    ReferencePoint("HuBERT Base, iteration 2, 960 h", 500, 400_000, 3.422 * _NATS, 0.417, 0.662, _TWICE, "fairseq #4907"),
    ReferencePoint("WavLM Base, iteration 0, held-out", 100, None, 1.864, 0.457, None, _SOUND, "ESPnet's README"),
    ReferencePoint("WavLM Base, iteration 1, held-out", 500, None, 1.53, 0.414, None, _SOUND, "ESPnet's README"),
)


def comparable(clusters: float | None, updates: int) -> list[ReferencePoint]:
    """The points with as many clusters as a run; none for a short run."""
    return [point for point in POINTS if point.clusters == clusters and updates >= FEWEST_UPDATES]
