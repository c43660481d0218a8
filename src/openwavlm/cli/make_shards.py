"""Prepares a corpus as shards with an index: `openwavlm make-shards --help`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.runs.compose import plain
from openwavlm.runtime.job_array import Slurm, is_array, run_array
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.stats import sentences, split_sentence


def _as_array(arguments: dict[str, Any], slurm: Slurm) -> bool:
    """Lists the tasks and runs them as a job array; returns True after the last job, when the caller builds the index."""
    num_tasks = arguments.pop("num_tasks")
    arguments |= {name: Path(arguments[name]).resolve() for name in ("input", "output")}
    arguments.pop("task_index")
    make_shards(**arguments, num_tasks=0)
    folder, workers = Path(f"{arguments['output']}.jobs"), arguments["workers"]
    return run_array(make_shards, arguments, num_tasks=num_tasks, workers=workers, folder=folder, slurm=slurm)


@command("prep/make_shards")
def main(config: DictConfig) -> None:
    """Prepares the shard set and prints its statistics."""
    arguments = {name: value for name, value in plain(config).items() if name not in ("debug", "launcher", "slurm")}
    if is_array(config.launcher, config.task_index) and not _as_array(arguments, Slurm(**config.slurm)):
        return
    stats = make_shards(**arguments)
    if "utterances" not in stats:
        print(f"{stats['tasks']} tasks; to finish the shard set, run again without num_tasks and task_index")
        return
    print(f"{stats['utterances']} utterances, {stats['hours']:.2f} hours, {stats['speakers']} speakers, {stats['shards']} shards")
    print(f"{stats['joined_clips']} short clips joined into {stats['joined']} utterances; {stats['short']} utterances stay short")
    print(f"{stats['skipped']} skipped {stats['skipped_by_reason'] or ''}; {stats['clipped_files']} files have clipped samples")
    for sentence in sentences(stats):
        print(sentence)
    for name in ("speaker", "recording"):
        share = stats[f"same_{name}_share"]
        known = "is unknown" if share is None else f"is the same in {share:.2%} of the pairs that may be mixed"
        print(f"the {name} {known}")
    print(split_sentence(stats))
