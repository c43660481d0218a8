"""`quality.html` and `quality.png`: labels and layers beside their baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openwavlm.evaluation.probe import summary
from openwavlm.evaluation.quality_rows import COLUMNS, QualityRow, cells, tsv
from openwavlm.report.charts import BLUE, CHART_STYLE, GREY, LINE, ORANGE, RED, inline_svg
from openwavlm.report.pictures import png
from openwavlm.report.templating import render_page
from openwavlm.runtime.atomic import write_atomically, write_json

_STYLES = {"mfcc": (GREY, ":"), "mfcc_norm": (GREY, "--"), "logmel_raw": (RED, ":"), "logmel": (RED, "--")}
_PHONES = ("pnmi", "phones: PNMI, corrected (higher is better)")
_SPEAKERS = ("speaker_information", "speakers: information in a unit")
_WITHOUT_PHONES = ("perplexity", "use: as many evenly used units (perplexity)")


def _panels(rows: Sequence[QualityRow]) -> list[tuple[str, str]]:
    """(figure, title) of each panel."""
    has_phones = any(row.figures.phones for row in rows if row.condition == "clean")
    return [_PHONES if has_phones else _WITHOUT_PHONES, _SPEAKERS]


def _draw(axes: Axes, rows: Sequence[QualityRow], name: str, title: str) -> None:
    """One figure of the clean rows, with baselines as lines."""
    clean = [row for row in rows if row.condition == "clean"]
    baselines = [row for row in clean if row.kind in _STYLES]
    _points(axes, [row for row in clean if row.kind in ("layer", "labels")] or baselines, name)
    for row in baselines:
        colour, style = _STYLES[row.kind]
        axes.axhline(getattr(row.figures, name), color=colour, linestyle=style, linewidth=1.4, label=row.name)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set(title=title)
    axes.legend()


def _points(axes: Axes, rows: Sequence[QualityRow], name: str) -> None:
    kinds = [("layer", BLUE, "layers of the model"), ("labels", ORANGE, "labels")]
    for kind, colour, label in [*kinds, *((kind, colour, "") for kind, (colour, _) in _STYLES.items())]:
        places = [place for place, row in enumerate(rows) if row.kind == kind]
        if not places:
            continue
        values = [getattr(rows[place].figures, name) for place in places]
        axes.plot(places, values, "o-" if kind == "layer" else "o", color=colour, markersize=5, label=label or None)
        if name == "pnmi":
            low, high = ([getattr(rows[place].figures, end) for place in places] for end in ("pnmi_low", "pnmi_high"))
            axes.vlines(places, low, high, color=colour, linewidth=4, alpha=0.25)
    names = [row.name if row.layer is None else str(row.layer) for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=0 if len(rows) < 8 else 45)


def chart_png(rows: Sequence[QualityRow]) -> bytes:
    """The chart of the clean rows as PNG."""
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, 2), _panels(rows), strict=True):
            _draw(axes, rows, name, title)
        return png(figure)


def render_quality(result: Mapping[str, Any], rows: Sequence[QualityRow]) -> str:
    """The page as text; `result` is the content of `quality.json`, `rows` are its rows."""
    charts = []
    with rc_context(CHART_STYLE):
        for name, title in _panels(rows):
            figure = Figure(figsize=(4.4, 3.0), layout="constrained")
            _draw(figure.add_subplot(), rows, name, title)
            charts.append(inline_svg(figure, name, f"chart: {title}"))
    conditions = dict.fromkeys(row.condition for row in rows)
    return render_page(
        "quality.html.j2",
        "Quality of units",
        sentences=result["sentences"],
        charts=charts,
        header=[title for _, title in COLUMNS],
        tables=[(condition, [cells(row) for row in rows if row.condition == condition]) for condition in conditions],
    )


def write_quality(output: Path, result: dict[str, Any], table: Sequence[QualityRow]) -> None:
    """Writes quality.tsv, quality.png, quality.html and quality.json, from what `evaluation.quality.judge` returns."""
    write_atomically(output / "quality.tsv", tsv(table).encode())
    write_atomically(output / "quality.png", chart_png(table))
    write_atomically(output / "quality.html", render_quality(result, table).encode())
    write_json(output / "quality.json", summary(result))
