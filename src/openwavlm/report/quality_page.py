"""`quality.html` and `quality.png`: labels and layers beside their baselines."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from openwavlm.evaluation.probe import summary
from openwavlm.evaluation.quality_rows import COLUMNS, QualityRow, cells, tsv
from openwavlm.report.markup import document, escaped, paragraph, table
from openwavlm.report.pictures import BLUE, CHART_STYLE, GREY, ORANGE, inline_svg, svg_of
from openwavlm.runtime.atomic import atomic_file, write_json

_PANELS = (("pnmi", "phones: PNMI, corrected (higher is better)"), ("speaker_information", "speakers: information in a unit"))
_WITHOUT_PHONES = ("perplexity", "use: as many evenly used units (perplexity)")


def _figure(rows: Sequence[QualityRow]) -> Figure:
    """Two panels: what the units tell of phones, and of speakers; the baseline as a line."""
    clean = [row for row in rows if row.condition == "clean"]
    judged = [row for row in clean if row.kind in ("layer", "labels")] or [row for row in clean if row.kind == "mfcc"]
    mfcc = [row for row in clean if row.kind == "mfcc"]
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = _PANELS if any(row.figures.phones for row in clean) else (_WITHOUT_PHONES, *_PANELS[1:])
    for axes, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
        _panel(axes, judged, name)
        for row in mfcc:
            axes.axhline(getattr(row.figures, name), color=GREY, linestyle=":", linewidth=1.4, label=row.name)
        axes.axhline(0, color="#d5d9df", linewidth=0.8)
        axes.set(title=title)
        axes.legend()
    return figure


def _panel(axes: Axes, rows: Sequence[QualityRow], name: str) -> None:
    for kind, colour, label in (("layer", BLUE, "layers of the model"), ("labels", ORANGE, "labels"), ("mfcc", GREY, "")):
        places = [place for place, row in enumerate(rows) if row.kind == kind]
        if not places:
            continue
        values = [getattr(rows[place].figures, name) for place in places]
        axes.plot(places, values, "o-" if kind == "layer" else "o", color=colour, markersize=5, label=label or None)
        if name == "pnmi":
            low, high = ([getattr(rows[place].figures, end) for place in places] for end in ("pnmi_low", "pnmi_high"))
            axes.vlines(places, low, high, color=colour, linewidth=4, alpha=0.25)
    axes.set_xticks(range(len(rows)), [_short(row) for row in rows], rotation=0 if len(rows) < 8 else 45)


def _short(row: QualityRow) -> str:
    return str(row.layer) if row.layer is not None else row.name


def chart_png(rows: Sequence[QualityRow]) -> bytes:
    """The chart of the clean rows as PNG."""
    with rc_context(CHART_STYLE):
        figure = _figure(rows)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def render_quality(result: Mapping[str, Any], rows: Sequence[QualityRow]) -> str:
    """The page as text.

    Args:
        result: What `quality.json` holds.
        rows: The same rows as objects.
    """
    with rc_context(CHART_STYLE):
        chart = inline_svg(svg_of(_figure(rows)), "quality")
    wide = chart.replace("<svg", '<svg style="width:100%"', 1)
    said = "".join(map(paragraph, result["sentences"]))
    parts = [
        "<h1>How much the units tell</h1>",
        f'<section class="verdict">{said}</section>',
        f"<figure>{wide}</figure>",
    ]
    for condition in dict.fromkeys(row.condition for row in rows):
        here = [cells(row) for row in rows if row.condition == condition]
        parts.append(f"<h2>{escaped(condition)}</h2>{table([title for _, title in COLUMNS], here)}")
    parts.append("<h2>What the columns are</h2><dl>")
    parts += [f"<dt>{escaped(term)}</dt><dd>{escaped(meaning)}</dd>" for term, meaning in _MEANINGS]
    parts.append("</dl>")
    return document("Quality of units", "\n".join(parts))


_MEANINGS = (
    ("PNMI", "share of the phones' entropy that a frame's unit tells, less what shuffled units seem to tell on as many frames"),
    ("low, high", "95 % interval over speakers drawn anew"),
    ("spread", "standard deviation over codebook seeds; a difference below twice the larger spread is called equal"),
    ("raw PNMI, shuffled", "as published, and what shuffled units reach: PNMI is the difference"),
    ("phone purity", "share of frames whose phone is the most frequent one of their unit; grows with K by itself"),
    ("cluster purity", "share of frames whose unit is the most frequent one of their phone; falls with K by itself"),
    ("used, perplexity", "share of the units that occur, and how many evenly used ones would have the same entropy"),
    ("run", "mean number of frames (of 20 ms) for which a unit goes on"),
    (
        "speaker inf.",
        "share of the speakers' entropy that a frame's unit tells, shuffled units subtracted; speakers who say other sentences seem "
        "to differ too",
    ),
    ("speakers told", "share of 2-s stretches whose speaker is told by how often each unit occurs, fitted on other utterances"),
)


def write_quality(output: Path, result: dict[str, Any], table: Sequence[QualityRow]) -> None:
    """Writes quality.json, quality.tsv, quality.png and quality.html.

    Args:
        output: Their folder.
        result: The figures, as `evaluation.quality.judge` returns them.
        table: Its rows.
    """
    contents = {
        "quality.tsv": tsv(table).encode(),
        "quality.png": chart_png(table),
        "quality.html": render_quality(result, table).encode(),
    }
    for name, content in contents.items():
        with atomic_file(output / name) as file:
            file.write(content)
    write_json(output / "quality.json", summary(result))
