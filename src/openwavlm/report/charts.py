"""The charts of the pages: matplotlib figures as inline SVG with the page's colours, light or dark.

Charts are drawn at the width of a telephone's screen and laid side by side on wider ones, so that their text is never scaled down.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from openwavlm.evaluation.live import read_baselines
from openwavlm.report.content import Iteration
from openwavlm.report.reference_points import ReferencePoint, comparable
from openwavlm.training.heat_map import heat_map
from openwavlm.training.records import read_record

BLUE, PALE, ORANGE, GREY, GREEN, RED = "#1f5fa8", "#a9c4e4", "#c8641b", "#8a8f98", "#2c7a4b", "#a83232"
LINE, _INK = "#d5d9df", "#1c2128"
_OF_PAGE = {BLUE: "blue", PALE: "pale", ORANGE: "orange", GREY: "grey", GREEN: "green", RED: "red", LINE: "line"}
CHART_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "openwavlm",
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_BASELINES = {
    "mfcc": ("one MFCC frame", GREY, ":"),
    "mfcc_context": ("MFCC ± 5, raw", ORANGE, "--"),
    "mfcc_norm_context": ("MFCC ± 5, normalised", ORANGE, "-."),
    "logmel_raw_context": ("log-mel ± 5, raw", RED, "--"),
    "logmel_context": ("log-mel ± 5, normalised", RED, "-."),
    "untrained": ("untrained", GREEN, (0, (1, 1))),
}


@contextmanager
def chart(drawn: list[Markup], name: str, title: str, x: str, y: str) -> Iterator[Axes]:
    """A pair of axes; their figure is put into the list of drawn charts."""
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set(title=title, xlabel=x, ylabel=y)
        yield axes
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        drawn.append(inline_svg(figure, name, f"chart: {title}, {y} over {x}"))


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """A figure as an SVG element of a page, the same bytes at every call; without its metadata, which name addresses in the network.

    Args:
        figure: The figure.
        name: Prefix of the element's identifiers.
        label: Text for readers who cannot see it.
    """
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    body = buffer.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    body = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", body)
    for colour, name_in_page in _OF_PAGE.items():
        body = body.replace(colour, f"var(--{name_in_page})")
    body = body.replace(_INK, "currentColor")
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def learning_charts(iteration: Iteration, name: str) -> list[Markup]:
    """Curves over updates: masked cross-entropy and accuracy, learning rate and gradient norm; those that have figures."""
    metrics, validated, drawn = iteration.metrics, _has(iteration.validation, "step"), list[Markup]()
    trained = _has(metrics, "cross_entropy")
    if trained or validated:
        with chart(drawn, f"{name}loss", "Masked cross-entropy (lower is better)", "updates", "nats a masked frame") as axes:
            if trained:
                axes.plot(*smoothed(metrics, "cross_entropy"), color=PALE, linewidth=1.2, label="training batches, mixed")
            _held_out(axes, iteration, "cross_entropy", "nats")
    if validated:
        with chart(drawn, f"{name}acc", "Masked accuracy (higher is better)", "updates", "share of masked frames") as axes:
            _held_out(axes, iteration, "accuracy", "accuracy")
            axes.set_ylim(0, None)
    if _has(metrics, "lr"):
        with chart(drawn, f"{name}rate", "Learning rate", "updates", "learning rate") as axes:
            axes.plot(metrics["step"], metrics["lr"], color=BLUE, linewidth=1.4)
            axes.set_ylim(0, None)
    if _has(metrics, "grad_norm"):
        with chart(drawn, f"{name}norm", "Gradient norm before clipping", "updates", "L2 norm") as axes:
            axes.plot(*smoothed(metrics, "grad_norm"), color=BLUE, linewidth=1.2, label="gradient norm")
            clip_norm = (iteration.config.get("optim") or {}).get("clip_norm")
            if clip_norm:
                axes.axhline(clip_norm, color=ORANGE, linestyle="--", linewidth=1.4, label="clipped to this norm")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    return drawn


def _has(table: dict[str, np.ndarray], column: str) -> bool:
    """True if a table has figures in a column."""
    return column in table and bool(np.isfinite(table[column]).any())


def probe_map(iteration: Iteration, name: str) -> Markup | None:
    """Accuracy of the phone probe by layer over updates, from `probes.csv`."""
    table, baselines = iteration.run / "probes.csv", iteration.run / "probe_baselines.json"
    if not table.is_file() or not read_record(table).rows:
        return None
    known = read_baselines(baselines)["baselines"] if baselines.is_file() else {}
    with rc_context(CHART_STYLE):
        return inline_svg(heat_map(table, known), f"{name}live", "heat map: accuracy of the phone probe by layer and update")


def points_of(iteration: Iteration) -> list[ReferencePoint]:
    """Published points that stand beside this run."""
    return comparable((iteration.plan or {}).get("codebook"), (iteration.config.get("optim") or {}).get("updates", 0))


def smoothed(metrics: dict[str, np.ndarray], column: str, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of neighbouring updates with a figure, at most `points`; a NaN breaks the line where updates have no row."""
    steps, values = metrics["step"], metrics[column]
    gaps = steps[:-1][np.diff(steps) > 1] + 0.5
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    size = max(1, -(-len(values) // points))
    edges = np.arange(0, len(values), size)
    counts = np.diff(np.append(edges, len(values)))
    ends, means = steps[edges + counts - 1], np.add.reduceat(values, edges) / counts if len(values) else values
    places = np.searchsorted(ends, gaps)
    return np.insert(ends.astype(np.float64), places, gaps), np.insert(means, places, np.nan)


def _held_out(axes: Axes, iteration: Iteration, figure: str, published: str) -> None:
    """The validation curve, and a star for the last model on the test set; baselines of that set as lines; published points."""
    validation, masked = iteration.validation, iteration.masked or {}
    if _has(validation, "step"):
        tested = masked.get("set")
        label = "development speakers" if tested else "held-out speakers"
        axes.plot(validation["step"], validation[figure], "o-", color=BLUE, markersize=4, label=label)
        if tested:
            axes.plot(
                validation["step"][-1:],
                [masked[figure]],
                "*",
                color=BLUE,
                markersize=12,
                label="test speakers (also the baselines)",
            )
    lines = (("unigram", "label frequencies", GREY, ":"), ("count_table", "count table", ORANGE, "--"))
    for control, label, colour, style in (*lines, ("nearest_label", "nearest unmasked label", GREEN, "-.")):
        value = (masked.get(control) or {}).get(figure)
        if value is not None:
            axes.axhline(value, color=colour, linestyle=style, linewidth=1.4, label=label)
    points = [(point.updates, getattr(point, published)) for point in points_of(iteration) if point.updates is not None]
    known = [point for point in points if point[1] is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "D", color=GREY, markersize=4, label="other runs (table below)")


def layer_charts(phones: dict[str, Any], speakers: dict[str, Any], name: str) -> list[Markup]:
    """Accuracy of the phone and speaker probes by layer: baselines as lines, the chosen layer as a star."""
    drawn: list[Markup] = []
    for kind, figures, title, unit in (
        ("phones", phones, "Phones of test speakers (higher is better)", "share of frames"),
        ("speakers", speakers, "Speakers of the test set", "share of 2-s stretches"),
    ):
        layers, chosen = figures.get("layers") or [], figures.get("chosen_layer")
        if not layers:
            continue
        with chart(drawn, name + kind, title, "layer (0: input of the first)", unit) as axes:
            axes.plot(range(len(layers)), layers, "o-", color=BLUE, markersize=5, label="layers of the model")
            if chosen is not None:
                interval = (figures.get("intervals") or {}).get("chosen")
                if interval and None not in interval:
                    axes.plot([chosen, chosen], interval, color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
                axes.plot([chosen], [layers[chosen]], "*", color=BLUE, markersize=14, label="chosen on dev speakers")
            for control, (label, colour, style) in _BASELINES.items():
                if isinstance(figures.get(control), int | float):
                    axes.axhline(figures[control], color=colour, linestyle=style, linewidth=1.4, label=label)
            axes.set_xticks(range(0, len(layers), max(1, len(layers) // 12)))
    return drawn


def data_charts(iteration: Iteration, name: str) -> list[Markup]:
    """Frequency of each label, most frequent first, and the measured levels of mixtures."""
    drawn: list[Markup] = []
    counts, realised = iteration.cluster_counts, iteration.realised
    if counts is not None and counts.sum():
        share = 100 * np.sort(counts)[::-1] / counts.sum()
        unit = "% of the training frames"
        with chart(drawn, f"{name}use", "Frequency of each label", "labels, most frequent first", unit) as axes:
            axes.fill_between(np.arange(len(share)), share, step="mid", color=PALE)
            axes.axhline(100 / len(share), color=GREY, linestyle=":", label="all equally often")
            axes.set_ylim(0, None)
    if realised is not None and np.isfinite(realised.energy_ratio_db).any():
        measured = (realised.energy_ratio_db, realised.overlap_snr_db)
        levels = [np.clip(values[np.isfinite(values)], -20, 25) for values in measured]
        level = "main speaker over added sound, dB (outer bars: and beyond)"
        with chart(drawn, f"{name}level", "Measured levels of the mixtures", level, "mixtures") as axes:
            labels = ["whole utterances (as drawn)", "within the overlap"]
            axes.hist(levels, np.arange(-20, 25.1, 2.5).tolist(), color=[BLUE, ORANGE], label=labels)
            for place, limit in enumerate((iteration.config.get("mixing") or {}).get("speech_db") or []):
                axes.axvline(limit, color=GREY, linestyle=":", label="limits for speech" if place == 0 else None)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn
