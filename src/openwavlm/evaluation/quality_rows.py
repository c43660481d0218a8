"""Labels, layers and baselines as the rows of one table, compared with all baselines of the same K on the same frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.intervals import Interval, Outcome, deciding, sign_places
from openwavlm.evaluation.unit_figures import UnitFigures, UnitTally, shuffled_tally

COLUMNS = (
    ("name", "units"),
    ("clusters", "K"),
    ("pnmi", "PNMI"),
    ("pnmi_low", "low"),
    ("pnmi_high", "high"),
    ("spread", "spread"),
    ("pnmi_raw", "raw PNMI"),
    ("pnmi_shuffled", "shuffled"),
    ("phone_purity", "phone purity"),
    ("cluster_purity", "cluster purity"),
    ("used", "used"),
    ("perplexity", "perplexity"),
    ("run_frames", "run, frames"),
    ("speaker_information", "speaker inf."),
    ("speaker_accuracy", "speaker accuracy"),
    ("best_baseline", "deciding baseline"),
    ("difference_to_best", "less deciding baseline (interval)"),
    ("verdict", "against all baselines"),
)


@dataclass(frozen=True)
class QualityRow:
    """One labelling or one layer in one condition.

    Attributes:
        name: Title for readers.
        kind: `labels`, `layer`, `shuffled`, or a key of `features.SPECTRA` for the units of that baseline.
        layer: Number of the layer, where it is one.
        condition: `clean`, `telephone` or `noise10`.
        figures: On the judged speakers.
        difference: PNMI less that of the deciding baseline (`intervals.deciding`) of the same K in this condition, with its interval;
            None for baselines and without phones.
        baseline: That baseline, a key of `features.SPECTRA`; empty without a difference.
    """

    name: str
    kind: str
    layer: int | None
    condition: str
    figures: UnitFigures
    difference: Interval | None = None
    baseline: str = ""

    @property
    def verdict(self) -> Outcome | Literal[""]:
        """Outcome against all baselines, which is that of `difference`; empty for baselines and without phones."""
        return self.difference.outcome if self.difference else ""

    def as_json(self) -> dict[str, Any]:
        """All figures by name, without the pseudo-values."""
        own = {"name": self.name, "kind": self.kind, "layer": self.layer, "condition": self.condition}
        figures = {name: value for name, value in vars(self.figures).items() if name != "pseudo"}
        value, low, high, visible = self.difference.as_list() if self.difference else [None] * 4
        ends = None if value is None else [value, low, high]
        compared = {
            "best_baseline": self.baseline,
            "difference_to_best": ends,
            "smallest_visible": visible,
            "verdict": self.verdict,
        }
        return own | figures | compared


def rows_of(
    tallies: Mapping[tuple[str, str, int | None], Sequence[UnitTally]],
    baselines: Mapping[str, Mapping[int, Sequence[UnitTally]]],
    condition: str,
) -> list[QualityRow]:
    """Rows of one condition: labels and layers in the given order, then baselines and shuffled units.

    Args:
        tallies: (name, kind, layer) → one tally a codebook seed.
        baselines: Key of `features.SPECTRA` → K → tallies of its units, for every K that the others have; at least `mfcc`.
    """
    figures_of = {key: {clusters: UnitFigures.of(of) for clusters, of in sizes.items()} for key, sizes in baselines.items()}
    rows = []
    for (name, kind, layer), of in tallies.items():
        figures = UnitFigures.of(of)
        if not figures.phones:
            rows.append(QualityRow(name, kind, layer, condition, figures))
            continue
        # The same K, unless there was too little speech for it.
        rivals = {key: sizes[min(sizes, key=lambda own: (abs(own - figures.clusters), own))] for key, sizes in figures_of.items()}
        apart = {key: figures.minus(rival) for key, rival in rivals.items()}
        decider, _ = deciding(
            {key: one.outcome for key, one in apart.items()}, {key: rival.pnmi for key, rival in rivals.items()}
        )
        rows.append(QualityRow(name, kind, layer, condition, figures, apart[decider], decider))
    rows += [
        QualityRow(f"{SPECTRA[key]}, K = {clusters}", key, None, condition, of)
        for key, sizes in figures_of.items()
        for clusters, of in sizes.items()
    ]
    clusters = max(baselines["mfcc"])
    shuffled = [shuffled_tally(tally, seed) for seed, tally in enumerate(baselines["mfcc"][clusters])]
    rows.append(QualityRow(f"{SPECTRA['mfcc']}, shuffled, K = {clusters}", "shuffled", None, condition, UnitFigures.of(shuffled)))
    return rows


def cells(row: QualityRow) -> list[str]:
    """Formats the row as text, in the order of `COLUMNS`."""
    values = row.as_json()
    if row.difference:
        values |= {"difference_to_best": difference_text(row.difference), "verdict": verdict_text(row.difference)}
    values["best_baseline"] = SPECTRA.get(row.baseline)
    return [_cell(name, values[name]) for name, _ in COLUMNS]


def difference_text(difference: Interval) -> str:
    """A difference with its interval, with as many places as its outcome needs."""
    places = sign_places(difference.low, difference.high, 3)
    if difference.outcome == "unknown":
        return f"{difference.value:+.{places}f}"
    return f"{difference.value:+.{places}f} ({difference.low:+.{places}f} to {difference.high:+.{places}f})"


def verdict_text(difference: Interval) -> str:
    """The outcome in words, for `equal` with the smallest visible difference."""
    if difference.outcome == "unknown":
        return "no interval: one speaker"
    return f"equal (visible from {difference.visible:.3f})" if difference.outcome == "equal" else difference.outcome


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:  # NaN: no interval of one speaker
        return "–"
    if isinstance(value, float):
        return f"{value:.1f}" if name in ("perplexity", "run_frames") else f"{value:.3f}"
    return str(value)


def text_table(rows: Sequence[QualityRow]) -> str:
    """Formats the rows as an aligned text table."""
    lines = [[title for _, title in COLUMNS], *(cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    forms = [f"{{:{'>' if place else '<'}{width}}}" for place, width in enumerate(widths)]
    return "\n".join("  ".join(forms).format(*line) for line in lines)


def tsv(rows: Sequence[QualityRow]) -> str:
    """Formats all figures of all rows, tab-separated, under their names."""
    names = [name for name in rows[0].as_json() if name not in ("seeds", "difference_to_best")]
    lines = [[*names, "difference_to_best", "difference_low", "difference_high"]]
    for row in rows:
        values = row.as_json()
        difference = values["difference_to_best"] or (None, None, None)
        lines.append(["" if value is None else _plain(value) for value in (*(values[name] for name in names), *difference)])
    return "".join("\t".join(line) + "\n" for line in lines)


def _plain(value: Any) -> str:
    return ("" if value != value else f"{value:.5f}") if isinstance(value, float) else str(value)
