"""Spectrograms of training rows as PNG data URIs, audio as WAV or FLAC data URIs."""

import base64
import io
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openwavlm.audio.encode import encode
from openwavlm.audio.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from openwavlm.report.charts import CHART_STYLE
from openwavlm.report.content import Example


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """A figure as PNG, the same bytes at every call."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _spectrogram_db(signal: np.ndarray) -> np.ndarray:
    """Log power, (bins, frames): 25-ms windows every 5 ms."""
    padded = np.pad(signal.astype(np.float64), 200)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::80] * np.hanning(400)
    return 10 * np.log10(np.abs(np.fft.rfft(windows, 512)).T ** 2 + 1e-7)


def mixture_picture(examples: Sequence[Example], *, wide: bool = False) -> str:
    """Spectrograms before and after mixing over mask and labels as a PNG data URI, rows one after the other; one spectrogram if none
    was mixed; `wide`: over the page's whole width, with the numbers of the labels where there is room.
    """
    ends_s = np.cumsum([len(example.clean) for example in examples]) / SAMPLE_RATE_HZ
    mixed = any(example.length for example in examples)
    size = (9.6, 1.0 + 1.5 * (1 + mixed)) if wide else (5.2, 4.4)
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        heights = [4.0] * (1 + mixed) + [0.8, 0.8]
        *above, mask, labels = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        for axes, title in zip(above, ("before mixing", "after mixing") if mixed else ("audio",), strict=True):
            axes.set(title=title, ylabel="kHz")
        mask.set_title("mask (dark: hidden from the encoder, to be predicted)")
        labels.set_title("labels of the clean main speaker (one colour a label)")
        top = max(_spectrogram_db(example.mixed).max() for example in examples)
        for example, end_s in zip(examples, ends_s.tolist(), strict=True):
            begin_s = end_s - len(example.clean) / SAMPLE_RATE_HZ
            for axes, signal in zip(above, (example.clean, example.mixed), strict=False):
                image, extent = _spectrogram_db(signal), (begin_s, end_s, 0, 8)
                axes.imshow(image, origin="lower", aspect="auto", extent=extent, vmin=top - 70, vmax=top, cmap="magma")
                for edge in (example.start, example.start + example.length) if example.length else ():
                    axes.axvline(begin_s + edge / SAMPLE_RATE_HZ, color="white", linestyle="--", linewidth=1)
            _draw_frames(mask, labels, example, begin_s)
            if wide:
                _write_labels(labels, example.labels, begin_s, inches_a_frame=8.8 / FRAME_RATE_HZ / max(0.02, ends_s[-1]))
        for axes in (mask, labels):
            axes.set_yticks([])
        labels.set(xlabel="seconds", xlim=(0, ends_s[-1]))
        image_png = png(figure, dpi=110 if wide else 150)
    return "data:image/png;base64," + base64.b64encode(image_png).decode()


def _draw_frames(mask: Axes, labels: Axes, example: Example, begin_s: float) -> None:
    extent = (begin_s, begin_s + len(example.mask) / FRAME_RATE_HZ, 0, 1)
    mask.imshow(example.mask[None], aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=1.3)
    colours = np.where(example.labels >= 0, example.labels * 7 % 20, np.nan)
    labels.imshow(colours[None], aspect="auto", extent=extent, cmap="tab20", vmin=0, vmax=19, interpolation="nearest")


def _write_labels(axes: Axes, labels: np.ndarray, begin_s: float, *, inches_a_frame: float) -> None:
    begin = 0
    for label, frames in runs_of(labels):
        if label >= 0 and frames * inches_a_frame > 0.06 + 0.06 * len(str(label)):
            place_s = begin_s + (begin + frames / 2) / FRAME_RATE_HZ
            axes.text(place_s, 0.45, str(label), ha="center", va="center", fontsize=7)
        begin += frames


def runs_of(values: np.ndarray) -> list[tuple[int, int]]:
    """(value, length) of each stretch of equal neighbours."""
    return [(value, len(list(group))) for value, group in itertools.groupby(values.tolist())]


def audio_uri(signal: np.ndarray, peak: float, *, flac: bool = False) -> str:
    """A signal as a 16-bit WAV or FLAC data URI, divided by `peak`: equal peaks keep the levels of two signals comparable."""
    kind = "flac" if flac else "wav"
    content = encode(0.9 * signal / max(peak, 1e-6), kind.upper(), "PCM_16")
    return f"data:audio/{kind};base64," + base64.b64encode(content).decode()
