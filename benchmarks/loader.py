"""What the loader costs over decoding alone: `python benchmarks/loader.py --json FILE`.

n loader workers (read, decode, labels, masks, mixing draws, noise, collation, transport) against n processes that only decode the
same FLAC bytes with soundfile; alternated, medians of the ratio.
"""

import argparse
import io
import itertools
import json
import logging
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import soundfile
import torch

from openwavlm.batches.collate import Draws, MicroBatchBuilder
from openwavlm.batches.loader import micro_batch_loader, received
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.settings import Batching, Loading, Mixing, SpanMasking
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.store import LabelStore
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards

BATCHING = Batching(seconds=175.0, micro_seconds=175.0, max_seconds=15.625, min_seconds=2.0)


def synthesise(folder: Path, utterances: int, seconds: tuple[float, float]) -> Path:
    """Writes `utterances` speech-like files (harmonics, pauses, noise) and shards them."""
    generator = np.random.default_rng(1)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number in range(utterances):
        length = int(generator.uniform(*seconds) * 16_000)
        time_s = np.arange(length) / 16_000
        pitch = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time_s + number)) / 16_000
        voice = sum(np.sin(k * pitch) / k for k in range(1, 20))
        envelope = np.clip(np.sin(2 * np.pi * 2.5 * time_s + number) + 0.3, 0, 1)
        signal = 0.1 * voice * envelope + 0.003 * generator.standard_normal(length)
        soundfile.write(corpus / f"{number:05d}.flac", signal.astype(np.float32), 16_000)
    make_shards(input=corpus, output=folder / "shards", source="bench", workers=1)
    return folder / "shards"


def _decode(shards: Path, process: int, processes: int, barrier: object, seconds: float, queue: object) -> None:
    index = Index.open(shards)
    payloads = []
    for row in range(process, len(index), processes):
        with (index.path / index.shards[int(index.shard[row])].name).open("rb") as file:
            file.seek(int(index.offset[row]))
            payloads.append(file.read(int(index.nbytes[row])))
    barrier.wait()  # type: ignore[attr-defined]
    began, samples = time.perf_counter(), 0
    for payload in itertools.cycle(payloads):
        samples += len(soundfile.read(io.BytesIO(payload), dtype="int16")[0])
        if time.perf_counter() - began > seconds:
            break
    queue.put(samples / 16_000 / (time.perf_counter() - began))  # type: ignore[attr-defined]


def bare(shards: Path, processes: int, seconds: float) -> float:
    """Audio-seconds per second of `processes` that only decode."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(processes), context.Queue()
    running = [context.Process(target=_decode, args=(shards, p, processes, barrier, seconds, queue)) for p in range(processes)]
    for process in running:
        process.start()
    total = sum(queue.get() for _ in running)
    for process in running:
        process.join()
    return total


def ours(builder: MicroBatchBuilder, plan: EpochPlan, workers: int, seconds: float) -> float:
    """Audio-seconds per second that arrive from `workers` loader processes, once they are warm."""

    def specs() -> Iterator[MicroBatchSpec]:
        for number in itertools.count():
            yield plan.spec(number % len(plan))

    loading = Loading(workers=workers)
    batches = received(iter(micro_batch_loader(builder, specs(), loading)))
    for _ in range(workers * loading.prefetch + 2):
        next(batches)
    began, samples = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        samples += next(batches).valid_samples
    speed = samples / 16_000 / (time.perf_counter() - began)
    del batches
    return speed


def main() -> None:
    """Runs the comparison for 1 and 2 workers."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, help="an existing shard set with --labels; a synthetic one by default")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--utterances", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards, labels = arguments.shards, arguments.labels
        if shards is None:
            shards = synthesise(Path(scratch), arguments.utterances, (8.0, 15.6))
            fit_codebook(
                [shards],
                Path(scratch) / "codebook",
                clusters=100,
                engine="minibatch",
                min_frames_per_cluster=20,
                sample_hours=0.2,
                n_init=1,
            )
            labels = Path(scratch) / "labels"
            assign_labels(shards, Path(scratch) / "codebook", labels)
        index = Index.open(shards)
        usable = np.ones(len(index), dtype=bool)
        plan = EpochPlan(index.num_samples, index.first_row, usable, BATCHING, seed=1, source="bench", epoch=0)
        draws = Draws(1, SpanMasking(), Mixing(prob=0.2, noise_prob=0.1), layers=12, layer_drop=0.05)
        builder = MicroBatchBuilder({"bench": shards}, {"bench": [LabelStore.open(labels, index)]}, draws, noise=shards)
        results = {}
        for workers in (1, 2):
            pairs = [
                (ours(builder, plan, workers, arguments.seconds), bare(shards, workers, arguments.seconds))
                for _ in range(arguments.rounds)
            ]
            results[str(workers)] = {
                "ours_over_bare": round(statistics.median(a / b for a, b in pairs), 3),
                "ratios": [round(a / b, 3) for a, b in pairs],
                "ours_audio_s_per_s": round(statistics.median(a for a, _ in pairs)),
                "bare_audio_s_per_s": round(statistics.median(b for _, b in pairs)),
            }
    result = {
        "workers": results,
        "ours_over_bare": min(entry["ours_over_bare"] for entry in results.values()),
        "hours": round(float(index.num_samples.sum(dtype=np.float64)) / 16_000 / 3600, 3),
        "versions": {"torch": torch.__version__, "soundfile": soundfile.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
