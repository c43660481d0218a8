"""The model learns from what it hears: digits said by voices that it never heard, beside guesses that know the labels but no audio.

A count table sees the nearest labels on both sides of a gap; audio tells which word the gap is in. The control trains alike on labels
that were moved to other utterances: all that labels tell about labels stays, only their bond with the audio is cut.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from openwavlm.audio.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.sources import OpenData
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import write_labels_meta
from openwavlm.pipeline.masked import masked_figures
from openwavlm.runs.compose import plain
from openwavlm.runs.export import load_run
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.synthesis import espeak
from openwavlm.synthesis.voices import SPEAKERS
from openwavlm.training.config import RunConfig
from runs import compose, launch
from synthetic_labels import write_pack

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng is not installed: pip install 'openwavlm[demo]'"
    ),
]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MINUTES = {"train": 15, "dev": 1, "test": 2}
RECIPE = [
    *("experiment=wavlm_nano", "loss=warm", "mixing=off", "name=digits", "trainer.accelerator=cpu", "loader.workers=0"),
    *("model.dim=96", "model.ffn_dim=384", "batch.seconds=8", "batch.micro_seconds=8"),
    *("optim.updates=500", "optim.warmup_updates=40", "optim.lr=3e-3"),
    *("callbacks.validate_every=0", "callbacks.unmasked_every=0", "callbacks.checkpoint_every=1000", "data.validation_share=0"),
]


def say_digits(folder: Path, split: str, minutes: float, seed: int) -> None:
    """Writes `folder/VOICE/NNN.wav`: six digits each, by the voices of a split, with pitch, rate and vocal tract drawn anew."""
    draw = np.random.default_rng(seed)
    voices = sorted({speaker.variant for speaker in SPEAKERS if speaker.split == split})
    made_s, number = 0.0, 0
    while made_s < 60 * minutes:
        voice = voices[number % len(voices)]
        pitch, rate_wpm, tract = int(draw.integers(25, 76)), int(draw.integers(150, 185)), draw.uniform(0.88, 1.14)
        text = " ".join(draw.choice(DIGITS, size=6)) + "."
        said = espeak.speak(text, f"gmw/en-US+{voice}", pitch=pitch, rate_wpm=rate_wpm, seed=number).samples / 32768
        said = soxr.resample(said, espeak.SAMPLE_RATE_HZ * tract, SAMPLE_RATE_HZ)
        said = 0.5 * said / np.abs(said).max() + 0.003 * draw.standard_normal(len(said))
        path = folder / voice / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, said, SAMPLE_RATE_HZ)
        made_s += len(said) / SAMPLE_RATE_HZ
        number += 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SET/shards`, `SET/labels` and `SET/moved` (the same labels, half a labelling away) for each set."""
    folder = tmp_path_factory.mktemp("digits")
    for seed, (name, minutes) in enumerate(MINUTES.items()):
        say_digits(folder / "audio" / name, name, minutes, seed)
        source = {"input": folder / "audio" / name, "source": name, "speaker_folder": 1, "min_seconds": 0.5}
        make_shards(output=folder / name / "shards", utterances_per_shard=50, **source)
    fit_codebook(
        [folder / "train" / "shards"],
        folder / "codebook",
        clusters=8,
        engine="minibatch",
        min_frames_per_cluster=20,
        validation_share=0.0,
        n_init=1,
    )
    for name in MINUTES:
        assign_labels(folder / name / "shards", folder / "codebook", folder / name / "labels")
        move_labels(folder / name)
    return folder


def move_labels(folder: Path) -> None:
    """Writes `folder/moved`: the labels of `folder/labels` in their order, half a labelling later."""
    labels, moved = folder / "labels", folder / "moved"
    shutil.copytree(labels, moved)
    index, codebook = Index.open(folder / "shards"), Codebook.load(folder.parent / "codebook")
    packs, counts = [], np.zeros(len(codebook), dtype=np.int64)
    first = 0
    for pack in json.loads((labels / "meta.json").read_text())["packs"]:
        values = np.fromfile(labels / f"{pack['name']}.u16", dtype="<u2")
        values = np.roll(values, len(values) // 2)
        shards = range(first, first + len(pack["shards"]))
        rows = range(index.first_row[shards[0]], index.first_row[shards[-1] + 1])
        borders = np.cumsum(num_frames(index.num_samples[rows.start : rows.stop].astype(np.int64)))[:-1]
        parts = dict(zip(rows, np.split(values, borders), strict=True))
        result = write_pack(moved, pack["name"], index, shards, parts.get, len(codebook))
        packs, counts, first = [*packs, result.record], counts + result.label_counts, shards[-1] + 1
    write_labels_meta(moved, codebook, packs, counts)


def trained(data: Path, directory: Path, labels: str, *overrides: str) -> dict:
    """Figures on the held-out voices after training on one kind of labels."""
    chosen = [
        *RECIPE,
        *(f"data.sources.speech.{kind}={data}/train/{name}" for kind, name in (("shards", "shards"), ("labels", labels))),
    ]
    chosen += [
        f"+data.validation.{name}={{shards: {data}/{name}/shards, labels: {data}/{name}/{labels}}}" for name in ("dev", "test")
    ]
    chosen += overrides
    assert launch(chosen, directory) == [0]
    values = plain(compose(chosen))
    parts = RunConfig.of(values)
    opened = OpenData(parts.data, parts.batch, values["seed"])
    try:
        model, _ = load_run(directory)
        return masked_figures(model, parts, opened, train="speech", dev="dev", test="test")[0]
    finally:
        opened.close()


@pytest.fixture(scope="module")
def hearing(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return trained(data, tmp_path_factory.mktemp("hearing"), "labels")


def test_on_unheard_voices_the_model_beats_what_can_be_known_without_audio(hearing: dict):
    seen = json.dumps(hearing)
    assert hearing["frames"] > 2000, seen
    assert hearing["cross_entropy"] < hearing["unigram"]["cross_entropy"] - 0.3, seen
    assert hearing["cross_entropy"] < 0.95 * hearing["count_table"]["cross_entropy"], seen
    assert hearing["accuracy"] > max(hearing[name]["accuracy"] for name in ("unigram", "nearest_label", "count_table")), seen


def test_trained_on_labels_of_other_utterances_it_does_not(data: Path, hearing: dict, tmp_path: Path):
    deaf = trained(data, tmp_path, "moved")
    seen = json.dumps({"hearing": hearing, "deaf": deaf})
    table = deaf["count_table"]["cross_entropy"]
    assert abs(table - hearing["count_table"]["cross_entropy"]) < 0.1, (
        f"labels must be as predictable as before from labels: {seen}"
    )
    assert deaf["cross_entropy"] > table, seen
    assert deaf["cross_entropy"] > deaf["unigram"]["cross_entropy"] - 0.05, seen
