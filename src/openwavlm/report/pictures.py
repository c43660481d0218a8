"""The report's pictures: matplotlib figures as inline SVG, spectrograms as PNG data URIs, audio as WAV data URIs.

Charts are drawn at the width of a telephone's screen and laid side by side on wider ones, so that their text is never scaled down.
"""

import base64
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from openwavlm.audio.encode import encode
from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from openwavlm.evaluation.live import read_baselines
from openwavlm.report.content import Example, Iteration, Realised
from openwavlm.report.reference_points import ReferencePoint, comparable
from openwavlm.training.heat_map import heat_map
from openwavlm.training.records import read_record

BLUE, ORANGE, GREY, GREEN, RED = "#1f5fa8", "#c8641b", "#8a8f98", "#2c7a4b", "#a83232"
CHART_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "openwavlm",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_BASELINES = {
    "mfcc": ("one MFCC frame", GREY, ":"),
    "mfcc_context": ("MFCC ± 5", ORANGE, "--"),
    "logmel_context": ("log-mel ± 5", RED, "-."),
    "untrained": ("untrained", GREEN, (0, (1, 1))),
}


@contextmanager
def _chart(width: float = 4.9, height: float = 3.1) -> Iterator[tuple[Axes, list[str]]]:
    """A figure with one pair of axes; its SVG is put into the list."""
    svg: list[str] = []
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        yield axes, svg
        svg.append(svg_of(figure))


def svg_of(figure: Figure) -> str:
    """A figure as SVG, the same bytes at every call."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def inline_svg(svg: str, name: str) -> str:
    """An SVG as an element of a page: without prologue and metadata (which point to the network), with identifiers of its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return re.sub(r' xmlns(?::xlink)?="[^"]*"', "", body)


def loss_curves(iteration: Iteration, name: str) -> str | None:
    """Cross-entropy over updates: training batches, held-out speakers, and the lines of what hears no audio."""
    metrics, validation = iteration.metrics, iteration.validation
    if not len(metrics.get("step", ())) and not len(validation.get("step", ())):
        return None
    with _chart() as (axes, svg):
        if len(metrics.get("step", ())):
            steps, smooth = _smoothed(metrics["step"], metrics["cross_entropy"])
            axes.plot(steps, smooth, color="#a9c4e4", linewidth=1.2, label="training batches, mixed")
        if len(validation.get("step", ())):
            _held_out_curve(axes, iteration, "cross_entropy")
        _control_lines(axes, iteration, "cross_entropy")
        _reference_points(axes, iteration, "nats")
        axes.set(xlabel="updates", ylabel="nats a masked frame", title="Masked cross-entropy (lower is better)")
        _legend_below(axes)
    return inline_svg(svg[0], name)


def accuracy_curve(iteration: Iteration, name: str) -> str | None:
    """Masked accuracy over updates on held-out speakers."""
    validation = iteration.validation
    if not len(validation.get("step", ())):
        return None
    with _chart() as (axes, svg):
        _held_out_curve(axes, iteration, "accuracy")
        _control_lines(axes, iteration, "accuracy")
        _reference_points(axes, iteration, "accuracy")
        axes.set(xlabel="updates", ylabel="share of masked frames", title="Masked accuracy (higher is better)", ylim=(0, None))
        _legend_below(axes)
    return inline_svg(svg[0], name)


def probe_map(iteration: Iteration, name: str) -> str | None:
    """Phones told by layer over updates, from `probes.csv`."""
    table, baselines = iteration.run / "probes.csv", iteration.run / "probe_baselines.json"
    if not table.is_file() or not read_record(table).rows:
        return None
    known = read_baselines(baselines)["baselines"] if baselines.is_file() else {}
    with rc_context(CHART_STYLE):
        return inline_svg(svg_of(heat_map(table, known)), name)


def points_of(iteration: Iteration) -> list[ReferencePoint]:
    """Published points that stand beside this run."""
    clusters = (iteration.plan or {}).get("codebook")
    updates = (iteration.config.get("optim") or {}).get("updates", 0)
    return comparable(int(clusters) if clusters else None, int(updates))


def _reference_points(axes: Axes, iteration: Iteration, figure: str) -> None:
    places = [(float(point.updates), getattr(point, figure)) for point in points_of(iteration) if point.updates is not None]
    known = np.array([place for place in places if place[1] is not None])
    if len(known):
        axes.plot(known[:, 0], known[:, 1], "D", color=GREY, markersize=4, label="other runs (table below)")


def _legend_below(axes: Axes) -> None:
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _smoothed(steps: np.ndarray, values: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring updates, so that at most `points` are drawn; updates without a figure are left out.

    Where updates have no row, as in a damaged table, a NaN breaks the line.
    """
    gaps = steps[:-1][np.diff(steps) > 1] + 0.5
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    size = max(1, -(-len(values) // points))
    edges = np.arange(0, len(values), size)
    counts = np.diff(np.append(edges, len(values)))
    ends, means = steps[edges + counts - 1], np.add.reduceat(values, edges) / counts if len(values) else values
    places = np.searchsorted(ends, gaps)
    return np.insert(ends.astype(np.float64), places, gaps), np.insert(means, places, np.nan)


def _held_out_curve(axes: Axes, iteration: Iteration, figure: str) -> None:
    """What validation saw; and a star for the last model on a test set of its own, which the lines of the controls belong to."""
    validation, masked = iteration.validation, iteration.masked or {}
    tested = masked.get("set")
    label = "development voices" if tested else "held-out speakers"
    axes.plot(validation["step"], validation[figure], "o-", color=BLUE, markersize=4, label=label)
    if tested:
        axes.plot(validation["step"][-1:], [masked[figure]], "*", color=BLUE, markersize=12, label="test voices, as the lines")


def _control_lines(axes: Axes, iteration: Iteration, figure: str) -> None:
    masked = iteration.masked or {}
    lines = (("unigram", "label frequencies", GREY, ":"), ("count_table", "count table", ORANGE, "--"))
    for control, label, colour, style in (*lines, ("nearest_label", "nearest unmasked label", GREEN, "-.")):
        value = (masked.get(control) or {}).get(figure)
        if value is not None:
            axes.axhline(value, color=colour, linestyle=style, linewidth=1.4, label=label)


def layer_chart(phones: dict[str, Any], name: str) -> str | None:
    """Phone accuracy of every layer with the baselines as lines and the chosen layer marked."""
    layers = phones.get("layers") or []
    if not layers:
        return None
    with _chart() as (axes, svg):
        axes.plot(range(len(layers)), layers, "o-", color=BLUE, markersize=5, label="layers of the model")
        chosen = phones.get("chosen_layer")
        if chosen is not None:
            interval = (phones.get("intervals") or {}).get("chosen")
            if interval and None not in interval:
                axes.plot([chosen, chosen], interval, color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
            axes.plot([chosen], [layers[chosen]], "*", color=BLUE, markersize=14, label="chosen on dev voices")
        for control, (label, colour, style) in _BASELINES.items():
            if isinstance(phones.get(control), int | float):
                axes.axhline(phones[control], color=colour, linestyle=style, linewidth=1.4, label=label)
        axes.set(
            xlabel="layer (0: input of the first)", ylabel="share of frames", title="Phones, held-out voices (higher is better)"
        )
        axes.set_xticks(range(0, len(layers), max(1, len(layers) // 12)))
        _legend_below(axes)
    return inline_svg(svg[0], name)


def usage_chart(counts: np.ndarray, name: str) -> str | None:
    """How often each label occurs, most frequent first."""
    if not counts.sum():
        return None
    share = 100 * np.sort(counts)[::-1] / counts.sum()
    with _chart() as (axes, svg):
        axes.fill_between(np.arange(len(share)), share, step="mid", color="#a9c4e4")
        axes.axhline(100 / len(share), color=GREY, linestyle=":", label="all equally often")
        axes.set(
            xlabel="labels, most frequent first",
            ylabel="% of the training frames",
            title="How often each label occurs",
            ylim=(0, None),
        )
        _legend_below(axes)
    return inline_svg(svg[0], name)


def level_chart(realised: Realised, limits_db: list[float] | None, name: str) -> str | None:
    """Histograms of the measured levels of mixtures."""
    levels = [np.clip(values[np.isfinite(values)], -20, 25) for values in (realised.energy_ratio_db, realised.overlap_snr_db)]
    if not len(levels[0]):
        return None
    bins = np.arange(-20, 25.1, 2.5)
    with _chart() as (axes, svg):
        axes.hist(
            levels, bins.tolist(), color=[BLUE, ORANGE], label=["over whole utterances (what is drawn)", "within the overlap"]
        )
        for place, limit in enumerate(limits_db or []):
            axes.axvline(limit, color=GREY, linestyle=":", label="limits for speech" if place == 0 else None)
        axes.set(
            xlabel="main voice over added sound, dB (outer bars: and beyond)",
            ylabel="mixtures",
            title="Measured levels of the mixtures",
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return inline_svg(svg[0], name)


def _spectrogram_db(signal: np.ndarray) -> np.ndarray:
    """Log power, (bins, frames): 25-ms windows every 5 ms."""
    padded = np.pad(signal.astype(np.float64), 200)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::80] * np.hanning(400)
    return 10 * np.log10(np.abs(np.fft.rfft(windows, 512)).T ** 2 + 1e-7)


def mixture_picture(example: Example, *, wide: bool = False) -> str:
    """Spectrograms before and after mixing over the mask and the labels, one time axis; a PNG data URI.

    Args:
        example: The row; where it was not mixed there is one spectrogram.
        wide: Over the page's whole width, with the numbers of the labels that last long enough to be written.
    """
    seconds = len(example.clean) / SAMPLE_RATE_HZ
    grid = (0.0, len(example.mask) / FRAME_RATE_HZ)
    sounds = [("before mixing", example.clean), ("after mixing", example.mixed)] if example.length else [("audio", example.clean)]
    size = (9.6, 1.0 + 1.5 * len(sounds)) if wide else (5.2, 4.4)
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        heights = [4.0] * len(sounds) + [0.8, 0.8]
        *above, mask, labels = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        top = _spectrogram_db(example.mixed).max()
        for axes, (title, signal) in zip(above, sounds, strict=True):
            image = _spectrogram_db(signal)
            axes.imshow(image, origin="lower", aspect="auto", extent=(0, seconds, 0, 8), vmin=top - 70, vmax=top, cmap="magma")
            axes.set(title=title, ylabel="kHz")
            for edge in (example.start, example.start + example.length) if example.length else ():
                axes.axvline(edge / SAMPLE_RATE_HZ, color="white", linestyle="--", linewidth=1)
        mask.imshow(example.mask[None], aspect="auto", extent=(*grid, 0, 1), cmap="Greys", vmin=0, vmax=1.3)
        mask.set_title("mask (dark: hidden from the encoder, to be predicted)")
        colours = np.where(example.labels >= 0, example.labels * 7 % 20, np.nan)
        labels.imshow(colours[None], aspect="auto", extent=(*grid, 0, 1), cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
        labels.set_title("labels of the clean voice (one colour a label)")
        if wide:
            _write_labels(labels, example.labels, inches_a_frame=8.8 / max(1, len(example.labels)))
        for axes in (mask, labels):
            axes.set_yticks([])
        labels.set(xlabel="seconds", xlim=(0, seconds))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110 if wide else 150, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _write_labels(axes: Axes, labels: np.ndarray, *, inches_a_frame: float) -> None:
    begin = 0
    for label, frames in runs_of(labels):
        if label >= 0 and frames * inches_a_frame > 0.06 + 0.06 * len(str(label)):
            axes.text((begin + frames / 2) / FRAME_RATE_HZ, 0.45, str(label), ha="center", va="center", fontsize=7)
        begin += frames


def runs_of(values: np.ndarray) -> list[tuple[int, int]]:
    """(value, how often) of each stretch of equal neighbours."""
    if not len(values):
        return []
    edges = np.concatenate([[0], np.flatnonzero(np.diff(values.astype(np.int64))) + 1, [len(values)]])
    return [(int(values[begin]), int(end - begin)) for begin, end in itertools.pairwise(edges)]


def audio_uri(signal: np.ndarray, peak: float, *, flac: bool = False) -> str:
    """A signal as a 16-bit WAV or FLAC data URI, divided by `peak`: give two signals the same one to keep their levels comparable."""
    kind = "flac" if flac else "wav"
    content = encode(0.9 * signal / max(peak, 1e-6), kind.upper(), "PCM_16")
    return f"data:audio/{kind};base64," + base64.b64encode(content).decode()
