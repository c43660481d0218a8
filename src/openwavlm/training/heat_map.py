"""Heat map of the phone probes over a run: layers up, updates to the right."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from openwavlm.training.records import read_record


def read_probes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`probes.csv` as steps (probes,) and accuracies (layers, probes), NaN where empty."""
    record = read_record(path)
    figures = [[float(value) if value else np.nan for value in row[1:]] for row in record.rows]
    layers = len(record.columns) - 1 if record.rows else 0
    return np.array(record.steps), np.array(figures).reshape(len(record.rows), layers).T


def heat_map(path: Path, baselines: dict[str, float]) -> Figure:
    """Draws `probes.csv`; the title names the baselines, accuracies of `logmel_context`, `mfcc` and `untrained` on the same frames."""
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
    named = {"logmel_context": "log-mel ± 5", "mfcc": "MFCC", "untrained": "untrained"}
    without = ", ".join(f"{title} {baselines[name]:.3f}" for name, title in named.items() if name in baselines)
    axes.set_title("phone accuracy, share of frames" + (f" ({without})" if without else ""), fontsize="small")
    figure.colorbar(image, ax=axes)
    return figure
