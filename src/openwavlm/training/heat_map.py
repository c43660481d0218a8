"""Heat map of the phone probes over a run: layers up, updates to the right."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from openwavlm.training.records import read_record

# Of the baselines of `probe_baselines.json`, those that are shown.
_TITLES = {
    "mfcc_context": "MFCC ± 5 raw",
    "mfcc_norm_context": "MFCC ± 5 normalised",
    "logmel_raw_context": "log-mel ± 5 raw",
    "logmel_context": "log-mel ± 5 normalised",
    "untrained": "untrained",
}


def baselines_text(baselines: dict[str, float]) -> str:
    """Accuracies of the baselines that were measured, the best one first."""
    known = sorted((name for name in _TITLES if name in baselines), key=lambda name: -baselines[name])
    return ", ".join(f"{_TITLES[name]} {baselines[name]:.3f}" for name in known)


def read_probes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`probes.csv` as steps (probes,) and accuracies (layers, probes), NaN where empty."""
    record = read_record(path)
    figures = [[float(value) if value else np.nan for value in row[1:]] for row in record.rows]
    layers = len(record.columns) - 1 if record.rows else 0
    return np.array(record.steps), np.array(figures).reshape(len(record.rows), layers).T


def heat_map(path: Path, baselines: dict[str, float]) -> Figure:
    """Draws `probes.csv`; the title names the baselines, their accuracies on the same frames by their names in `probe_baselines.json`."""
    steps, accuracy = read_probes(path)
    figure = Figure(figsize=(5.4, 0.9 + 0.22 * max(4, len(accuracy))), layout="constrained")
    axes = figure.subplots()
    low = min([*baselines.values(), float(accuracy.min())])
    image = axes.imshow(accuracy, origin="lower", aspect="auto", cmap="viridis", vmin=low, interpolation="nearest")
    shown = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
    axes.set_xticks(shown, [f"{steps[place]:,}" for place in shown])
    axes.set_yticks(range(len(accuracy)))
    axes.set_xlabel("updates")
    axes.set_ylabel("layer")
    known = baselines_text(baselines).split(", ") if baselines else []
    lines = ["phone accuracy, share of frames", *(", ".join(known[place : place + 2]) for place in range(0, len(known), 2))]
    axes.set_title("\n".join(lines), fontsize="small")
    figure.colorbar(image, ax=axes)
    return figure
