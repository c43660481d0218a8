"""`device=cuda` of fit_kmeans, assign_labels and quality against `device=cpu`: seconds, centroids, labels that differ, figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.child import Reporter, timed
from gpu_parts.data import make_shard_set
from gpu_parts.setting import Setting
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.evaluation.quality import judge
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.teacher import forget_teacher
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.compose import composed, plain
from openwavlm.training.config import RunConfig, with_placeholders
from random_models import TINY
from runs import phone_times

_FIGURES = ("pnmi", "phone_purity", "perplexity", "speaker_information")


def labels_of(folder: Path) -> np.ndarray:
    """All labels of a labelling."""
    return np.concatenate([np.fromfile(path, dtype="<u2") for path in sorted(folder.glob("pack-*.u16"))])


def labels_that_differ(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Count and share."""
    different = int((first != second).sum())
    return {"frames": len(first), "different": different, "share": different / len(first)}


def codebook_distance(first: Codebook, second: Codebook) -> dict[str, Any]:
    """Distance of each centroid of `first` from that of the same number and from the nearest one, over the centroids' spread."""
    a, b = first.centroids.double(), second.centroids.double()
    spread = float((b - b.mean(0)).square().sum(1).mean().sqrt())
    between = torch.cdist(a, b)
    return {
        "of_the_same_number": {
            "largest": float(between.diagonal().max()) / spread,
            "mean": float(between.diagonal().mean()) / spread,
        },
        "of_the_nearest": {"largest": float(between.amin(1).max()) / spread, "mean": float(between.amin(1).mean()) / spread},
        "mean_squared_distance": [book.fitted["mean_squared_distance"] for book in (first, second)],
    }


def make_teacher(setting: Setting, folder: Path) -> int:
    """Writes a random model (at full size of `wavlm_small`); returns the layer in its middle."""
    torch.manual_seed(0)
    config = RunConfig.of(with_placeholders(plain(composed("train", ["name=x", "model=small"])))).model if setting.full else TINY
    save_huggingface(WavLM(replace(config, attention_backend="auto")), folder)
    return config.layers // 2


def _fit_both(place: "_Place", name: str, report: Reporter, **settings: Any) -> None:
    """Fits on both devices and reports the seconds and the distance."""
    books, seconds = {}, {}
    for side, device in place.sides.items():
        forget_teacher()
        seconds[side], books[side] = timed(
            fit_codebook,
            [place.shards],
            place.folder / f"codebook-{name}-{side}",
            clusters=place.clusters,
            min_frames_per_cluster=20,
            validation_share=0.5,
            device=device,
            workers=place.workers(device),
            **settings,
        )
    report(**{f"fit_{name}": {"seconds": seconds, "distance": codebook_distance(books["measured"], books["cpu"])}})


class _Place:
    """Folders and devices of this part; the sides are `cpu`, the reference, and `measured`, the device of the program."""

    def __init__(self, setting: Setting) -> None:
        self.folder, self.cores = setting.folder / "devices", setting.workers
        self.sides = {"cpu": "cpu", "measured": setting.device}
        self.clusters = 100 if setting.full else 8
        of = (8, 10, (2.0, 5.0)) if setting.full else (4, 4, (0.8, 1.6))
        self.shards, self.audio_s = make_shard_set(self.folder, *of, self.cores, seed=3)
        phone_times(self.shards, self.folder / "phones.tsv")
        self.teacher = self.folder / "teacher"
        self.layer = make_teacher(setting, self.teacher)

    def workers(self, device: str) -> int:
        """Processes that compute features on a device."""
        return min(8, self.cores) if device == "cpu" else 1


def _assign_both(place: _Place, report: Reporter) -> None:
    seconds, found = {}, {}
    for side, device in place.sides.items():
        forget_teacher()
        output = place.folder / f"labels-{side}"
        seconds[side], _ = timed(
            assign_labels,
            place.shards,
            place.folder / "codebook-layer-cpu",
            output,
            teacher=place.teacher,
            device=device,
            workers=place.workers(device),
        )
        found[side] = labels_of(output)
    report(assign={"seconds": seconds, **labels_that_differ(found["measured"], found["cpu"])})


def _judge_both(place: _Place, report: Reporter) -> None:
    seconds, tables = {}, {}
    for side, device in place.sides.items():
        forget_teacher()
        asked = QualitySettings(
            output=str(place.folder / f"quality-{side}"),
            shards=str(place.shards),
            alignments=str(place.folder / "phones.tsv"),
            labels=str(place.folder / "labels-cpu"),
            encoder=str(place.teacher),
            layers=[place.layer],
            clusters=place.clusters,
            held_out=0.5,
            device=device,
        )
        seconds[side], (_, tables[side]) = timed(judge, asked)
    rows = {}
    for row, other in zip(tables["cpu"], tables["measured"], strict=True):
        rows[row.name] = {name: [getattr(row.figures, name), getattr(other.figures, name)] for name in _FIGURES}
    report(quality={"seconds": seconds, "cpu_and_measured": rows})


def measure(setting: Setting, report: Reporter) -> None:
    """Reports fit on MFCC and on a layer, labels of one codebook, and quality."""
    place = _Place(setting)
    report(measured_device=setting.device, audio_s=round(place.audio_s, 1), clusters=place.clusters, layer=place.layer)
    _fit_both(place, "layer", report, features="layer", teacher=place.teacher, layer=place.layer)
    _assign_both(place, report)
    _judge_both(place, report)
    _fit_both(place, "mfcc", report)
