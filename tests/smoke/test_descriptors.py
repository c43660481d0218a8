"""Two sources of 260 shards, their labels in as many packs as there may be, and the limit of descriptors that most machines have."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.shards.prepare import make_shards
from patience import HANG_S
from programs import REPOSITORY
from runs import SETTINGS

SHARDS = 260


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name two sources of noise, a shard for each utterance."""
    folder, generator, words = tmp_path_factory.mktemp("sources"), np.random.default_rng(0), []
    for name in ("one", "two"):
        corpus = folder / name
        corpus.mkdir()
        for number in range(SHARDS):
            samples = generator.integers(-8000, 8000, 5200 + 16 * number, dtype=np.int16)
            soundfile.write(corpus / f"{number:03d}.wav", samples, 16_000)
        shards = folder / f"{name}-shards"
        make_shards(input=corpus, output=shards, source=name, utterances_per_shard=1, min_seconds=0.0)
        if name == "one":
            fit_codebook(
                [shards], folder / "book", clusters=4, engine="minibatch", min_frames_per_cluster=20, validation_share=0.0
            )
        assign_labels(shards, folder / "book", folder / f"{name}-labels", packs=256)
        words.append(f"+data.sources.{name}={{shards: {shards}, labels: {folder / f'{name}-labels'}}}")
    return [*words, "~data.sources.speech", "data.validation_share=0", "batch.min_seconds=0.1", "optim.updates=30"]


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_two_sources_of_260_shards_train_with_1024_descriptors(sources, tmp_path, workers):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    command = [
        sys.executable,
        str(REPOSITORY / "train.py"),
        *SETTINGS,
        "mixing.noise_prob=0",
        *sources,
        f"loader.workers={workers}",
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG_S, preexec_fn=limit)
    assert found.returncode == 0, found.stderr
    run = tmp_path / "runs" / "test"
    assert json.loads((run / "summary.json").read_text())["complete"]
    lines = (run / "metrics.csv").read_text().splitlines()
    unreadable = lines[0].split(",").index("unreadable_rows")
    rows = lines[0].split(",").index("rows")
    assert [line.split(",")[unreadable] for line in lines[1:]] == ["0"] * 30
    assert sum(int(line.split(",")[rows]) for line in lines[1:]) > 2 * SHARDS, "each shard was opened"
