"""The batches of one update, built again bit for bit: `openwavlm replay run=runs/NAME step=N`.

Needs the run's records and data; no checkpoint, no GPU and no lock, so it works beside the training.
"""

import copy
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.encode import encode, encode_flac
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.settings import label_folders
from openwavlm.batches.sources import OpenData
from openwavlm.report.batch_rows import describe_rows
from openwavlm.report.content import Example, known_tables, read_table
from openwavlm.report.rebuild import TrainingData, rebuild_step
from openwavlm.report.replay_page import render_replay
from openwavlm.runs.run_directory import RunRecord, lacks_names, same_data
from openwavlm.runs.segments import Segment, follow_plan, segment_of, share_of
from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.training.checkpoint import checkpoints_in
from openwavlm.training.config import RunConfig
from openwavlm.training.forward import prepare_waveforms

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch of an update.

    Attributes:
        batch: Bit-equal to the one that was trained on.
        prepared: Float (batch, samples), waveforms as the model received them: mixed, and normalised where the config says so.
    """

    batch: PretrainBatch
    prepared: Tensor
    rows: list[Example]


@dataclass(frozen=True, eq=False)
class Update:
    """An update, counted from 1, that was built again: its launch, its row of `metrics.csv`, its micro-batches in slot order."""

    step: int
    segment: Segment
    recorded: dict[str, float]
    micro_batches: list[MicroBatch]


def rebuild_update(run: Path, step: int) -> Update:
    """Builds the micro-batches of an update, counted from 1, again, and compares their counts with `metrics.csv`.

    Raises:
        ValueError: If the folder is no run directory; the run has not reached this update; the data is missing or has other content;
            the plan is unknown; or the counts differ from those that the run recorded.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run directory (it has no config.yaml): give the folder of a run, as in run=runs/NAME")
    recorded = _recorded(run, step)
    segment = segment_of(run, step)
    config = RunConfig.of({**segment.config, "data": _found(segment, step)})
    micro_batches = []
    with closing(TrainingData(config, share_of(segment.record, segment.config["data"]))) as data:
        _check_fingerprints(data.opened, segment, step)
        follow_plan(data.schedule, segment, data.opened.plan_key(), run, step)
        for built in rebuild_step(data, step):
            with _threads(segment.record["threads"]):
                prepared = prepare_waveforms(built.batch, config.mixing, normalised=config.model.normalise_waveform)
            rows = describe_rows(built, config.mixing, data.opened.indexes[built.batch.id.source])
            micro_batches.append(MicroBatch(built.batch, prepared, rows))
    update = Update(step, segment, recorded, micro_batches)
    _check_figures(update)
    return update


def _recorded(run: Path, step: int) -> dict[str, float]:
    """The update's row of `metrics.csv`; the table must agree with the newest checkpoint's record of it."""
    table = run / "metrics.csv"
    metrics = read_table(table, prefix=known_tables(run, RunRecord(run).content["segments"]).get(table.name))
    if not len(metrics.get("step", ())):
        if checkpoints_in(run / "checkpoints"):
            raise ValueError(f"{table} is missing or has no rows, but the run has checkpoints: restore it from a copy")
        raise ValueError(f"{run} has made no update yet, so there is nothing to replay: train it first")
    place = np.flatnonzero(metrics["step"] == step)
    last = int(metrics["step"][-1])
    if not len(place) and 1 <= step < last:
        raise ValueError(
            f"{table} has no row for update {step}, though it has one for update {last}: restore it from a copy, or replay another update"
        )
    if not len(place):
        raise ValueError(f"step must be an update that {run} has made, 1 to {last} so far, but is {step}: choose one of these")
    return {name: float(column[place[0]]) for name, column in metrics.items()}


def _found(segment: Segment, step: int) -> dict[str, Any]:
    """The launch's data node, with that of the run's newest config in place of a missing folder."""
    data, newest = copy.deepcopy(segment.config["data"]), segment.newest["data"]
    places = [
        (node, key, (newest.get(group) or {}).get(name) or {}, f"data.{group}.{name}.{key}")
        for group in ("sources", "validation")
        for name, node in (data.get(group) or {}).items()
        for key in ("shards", "labels")
    ]
    places += [(data, "noise", newest, "data.noise")] if data.get("noise") else []
    for node, key, newer, name in places:
        if not all(folder.exists() for folder in label_folders(node[key])) and newer.get(key):
            node[key] = newer[key]
        for folder in label_folders(node[key]):
            if folder.exists():
                continue
            where = "" if folder.is_absolute() else f" (below {Path.cwd()}, where this command was run)"
            raise ValueError(
                f"update {step} was trained on {name}={folder}, but there is no such folder{where}: run the command where train.py was "
                "run, move the folder back, or put a link in its place with ln -s"
            )
    return data


def _check_fingerprints(opened: OpenData, segment: Segment, step: int) -> None:
    found, expected = opened.fingerprints(), segment.record["fingerprints"]
    if lacks_names(expected, found) and same_data(expected, found):
        raise ValueError(
            f"the launch that trained update {step} has no record of the speakers and other names of its shards (a run of an older "
            "format): add it by `openwavlm upgrade` and the run's folder"
        )
    if found != expected:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        folders = dict.fromkeys([*opened.places().values(), *([str(opened.data.noise)] if opened.data.noise else [])])
        raise ValueError(
            f"update {step} was trained on other data than there is now ({', '.join(names)} differ): restore the data of that launch "
            f"in {', '.join(folders)}"
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets the launch's number of threads, on which the order of torch's sums depends."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_figures(update: Update) -> None:
    batches = [micro.batch for micro in update.micro_batches]
    built = {
        "rows": sum(len(batch.rows) for batch in batches),
        "unreadable_rows": sum(batch.num_unreadable for batch in batches),
        "masked_frames": sum(batch.num_masked for batch in batches),
        "mixed_rows": sum(len(batch.mix) for batch in batches),
        "audio_s": sum(batch.valid_samples for batch in batches) / SAMPLE_RATE_HZ,
    }
    recorded = update.recorded
    wrong = [f"{name} {value:g}, not {recorded[name]:g}" for name, value in built.items() if value != recorded[name]]
    if wrong:
        record = update.segment.record
        raise ValueError(
            f"the batches that were built again are not those of update {update.step}: metrics.csv has other figures ({'; '.join(wrong)}); "
            "if rows became readable or unreadable since, `openwavlm verify` of the shards finds them; else install the version that "
            f"trained it, openwavlm {record['versions']['openwavlm']} (commit {record['commit']})"
        )


def record_of(update: Update, run: Path) -> dict[str, Any]:
    """Content of `batch.json`: plain values."""
    segment = update.segment
    return {
        "format_version": FORMAT_VERSION,
        "run": run.name,
        "step": update.step,
        "recorded": {name: value if np.isfinite(value) else None for name, value in update.recorded.items()},
        "launch": {"number": segment.number, **segment.record},
        "fingerprints": segment.record["fingerprints"],
        "micro_batches": [
            {
                "slot": slot,
                **asdict(micro.batch.id),
                "fingerprint": micro.batch.fingerprint(),
                "prepared_sha256": hashlib.sha256(micro.prepared.numpy().tobytes()).hexdigest(),
                "samples": micro.batch.waveforms.shape[1],
                "masked_frames": micro.batch.num_masked,
                "layer_keep": micro.batch.layer_keep.tolist(),
                "rows": [row.facts for row in micro.rows],
            }
            for slot, micro in enumerate(update.micro_batches)
        ],
    }


def _shown(counts: list[int], limit: int) -> list[tuple[int, int]]:
    """(slot, row) of at most `limit` rows: the first ones of each micro-batch, equally many of each where it has as many."""
    places = [(place, slot) for slot, count in enumerate(counts) for place in range(count)]
    return sorted((slot, place) for place, slot in sorted(places)[:limit])


def replay(run: Path, step: int, *, rows: int = 32, output: Path | None = None) -> Path:
    """Writes the batches of an update: `batch.json`, `page.html` and `audio/`; returns their folder.

    Args:
        step: The update, from 1 as in `metrics.csv`.
        rows: Number of rows with pictures and audio; `batch.json` has all.
        output: Folder to write; `run/replay/step-…` by default.

    Raises:
        ValueError: If `rows` is negative, or as `rebuild_update`.
    """
    if rows < 0:
        raise ValueError(f"rows must be 0 or more, but is {rows}: 0 writes batch.json and a page without pictures")
    update = rebuild_update(run, step)
    output = output or run / "replay" / f"step-{step:08d}"
    record = record_of(update, run)
    shown = _shown([len(micro.rows) for micro in update.micro_batches], rows)
    examples = {(slot, place): update.micro_batches[slot].rows[place] for slot, place in shown}
    shutil.rmtree(output / "audio", ignore_errors=True)
    for (slot, place), example in examples.items():
        if not len(example.clean):
            continue
        name = f"{slot:02d}-{place:03d}"
        with atomic_file(output / "audio" / f"{name}-before.flac") as file:
            file.write(encode_flac((example.clean * 32768).astype(np.int16)))
        if example.length:
            with atomic_file(output / "audio" / f"{name}-after.wav") as file:
                file.write(encode(example.mixed, "WAV", "FLOAT"))
    with atomic_file(output / "page.html") as file:
        file.write(render_replay(record, examples).encode())
    write_json(output / "batch.json", record, indent=None)
    return output
