"""A replayed update is the one that was trained on, to the last bit; where that cannot be, a sentence says so."""

import hashlib
import json
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from openwavlm.data.audio import encode_flac
from openwavlm.replay import _shown, rebuild_update, record_of, replay
from programs import run_program
from runs import TINY_MODEL, launch
from synthetic import make_shard_set

SETTINGS = [
    "experiment=nano",
    "name=test",
    *TINY_MODEL,
    "model.layer_drop=0.2",
    "model.normalise_waveform=true",
    "mixing.prob=0.6",
    "mixing.noise_prob=0.3",
    "batch.seconds=12",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=10",
    "optim.warmup_updates=0",
    "callbacks.checkpoint_every=3",
    "callbacks.validate_every=0",
    "data.validation_share=0.3",
    "loader.workers=0",
]
CHANGED = ["batch.micro_seconds=6", "batch.seconds=18", "mixing.prob=0.9", "masking.length=6"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two labelled sources and a noise bank: speech, calls, noise, NAME-labels."""
    from openwavlm.labelling.assign import assign_labels
    from openwavlm.labelling.fit import fit_codebook

    folder = tmp_path_factory.mktemp("data")
    for name, speakers, seed in (("speech", 8, 0), ("calls", 6, 5), ("noise", 2, 9)):
        made = make_shard_set(folder / "work" / name, speakers=speakers, utterances=3, seconds=(1.0, 4.0), seed=seed, source=name)
        made.rename(folder / name)
    fit_codebook([folder / "speech", folder / "calls"], folder / "codebook", clusters=10, validation_share=0.3)
    for name in ("speech", "calls"):
        assign_labels(folder / name, folder / "codebook", folder / f"{name}-labels")
    fit_codebook([folder / "speech"], folder / "codebook-2", clusters=10, validation_share=0.3, seed=2)
    assign_labels(folder / "speech", folder / "codebook-2", folder / "speech-labels-2")
    return folder


def places(folder: Path) -> list[str]:
    return [
        *(f"data.sources.speech.{key}={folder / name}" for key, name in (("shards", "speech"), ("labels", "speech-labels"))),
        *(f"+data.sources.calls.{key}={folder / name}" for key, name in (("shards", "calls"), ("labels", "calls-labels"))),
        f"data.noise={folder / 'noise'}",
    ]


def _record(path: Path) -> None:
    """Writes hashes of what each update trains on: the micro-batches, and the waveforms as the model gets them."""
    from openwavlm.training import module as modules
    from openwavlm.training.module import PretrainingModule

    real_forward, real_step, now = modules.forward_micro_batch, PretrainingModule.training_step, [0]

    def training_step(self, batch, batch_idx):
        now[0] = batch.step + 1
        real_step(self, batch, batch_idx)

    def forward_micro_batch(model, batch, waveforms, **options):
        prepared = hashlib.sha256(waveforms.numpy().tobytes()).hexdigest()
        with path.open("a") as file:
            file.write(json.dumps([now[0], batch.fingerprint(), prepared]) + "\n")
        return real_forward(model, batch, waveforms, **options)

    PretrainingModule.training_step, modules.forward_micro_batch = training_step, forward_micro_batch


def trained(path: Path) -> dict[int, list[list[str]]]:
    """Update → the hashes of its micro-batches, of the launch that trained it last."""
    found: dict[int, list[list[str]]] = {}
    before = 0
    for step, *hashes in map(json.loads, path.read_text().splitlines()):
        if step != before:
            found[step] = []
        found[step].append(hashes)
        before = step
    return found


def replayed(run: Path, step: int) -> list[list[str]]:
    return [
        [micro["fingerprint"], micro["prepared_sha256"]] for micro in record_of(rebuild_update(run, step), run)["micro_batches"]
    ]


@pytest.fixture(scope="module")
def original(corpus, tmp_path_factory) -> Path:
    """`run`: ten updates of two sources with noise; after update 6 the plan, the mixing and the masks change. `trained`: hashes."""
    folder = tmp_path_factory.mktemp("runs")
    record = partial(_record, folder / "trained")
    assert launch([*SETTINGS, *places(corpus), "stop_after=6"], folder / "run", patch=record) == [0]
    changed = [*SETTINGS, *places(corpus), *CHANGED, "allow_change=[batch,mixing,masking]"]
    assert launch([*changed, "stop_after=8"], folder / "run", patch=record) == [0]
    assert launch(changed, folder / "run", patch=record) == [0]
    return folder


@pytest.fixture
def run(original, tmp_path) -> Path:
    """A copy of the run, to damage."""
    shutil.copytree(original / "run", tmp_path / "run", ignore=shutil.ignore_patterns("replay"))
    return tmp_path / "run"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- bit for bit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoints", [True, False])
def test_every_update_is_rebuilt_bit_for_bit_with_and_without_checkpoints(original, run, checkpoints):
    hashes = trained(original / "trained")
    assert sorted(hashes) == list(range(1, 11)) and len({h for hs in hashes.values() for h, _ in hs}) == 30
    if not checkpoints:
        shutil.rmtree(run / "checkpoints")
    assert {step: replayed(run, step) for step in hashes} == hashes
