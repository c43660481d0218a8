"""How long and how much memory the plan of 94,000 hours takes: `python benchmarks/plan.py --json FILE`."""

import argparse
import json
import platform
import resource
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from openwavlm.batches.plan import EpochPlan
from openwavlm.batches.settings import Batching


def synthetic_lengths(rows: int) -> np.ndarray:
    """Lengths (samples, uint32) like Libri-Light, VoxPopuli and GigaSpeech together: mean about 14.4 s, longest 33.5 s."""
    generator = np.random.Generator(np.random.Philox(1))
    lengths = np.empty(rows, dtype=np.uint32)
    for start in range(0, rows, 1 << 20):
        part = lengths[start : start + (1 << 20)]
        part[:] = np.clip(generator.gamma(2.6, 5.6, len(part)), 0.5, 33.5) * 16_000
    return lengths


def main() -> None:
    """Plans one epoch and reports seconds, peak memory and what the plan does with the audio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=23_500_000)
    parser.add_argument("--rows-per-shard", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lengths = synthetic_lengths(arguments.rows)
    first_row = np.minimum(np.arange(0, arguments.rows + arguments.rows_per_shard, arguments.rows_per_shard), arguments.rows)
    usable = np.ones(arguments.rows, dtype=bool)
    batching = Batching(seconds=2800.0, micro_seconds=175.0, max_seconds=15.6, min_seconds=2.0)
    began = time.perf_counter()
    plan = EpochPlan(lengths, first_row, usable, batching, seed=1, source="synthetic", epoch=0)
    seconds = time.perf_counter() - began
    result = {
        "rows": arguments.rows,
        "hours": round(float(lengths.sum(dtype=np.float64)) / 16_000 / 3600),
        "seconds": round(seconds, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "micro_batches": len(plan),
        "padding_share": round(plan.statistics.padding_share, 5),
        "lost_share": round(plan.statistics.lost_share, 5),
        "digest": f"{plan.digest:016x}",
        "numpy": np.__version__,
        "machine": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
