"""Prepares a corpus as shards with an index: `python data_prep/make_shards.py --help`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from openwavlm.cli import command
from openwavlm.data.corpora.files import counted
from openwavlm.data.prepare import make_shards
from openwavlm.job_array import Slurm, is_array, run_array


def _as_array(arguments: dict[str, Any], slurm: Slurm) -> bool:
    """Lists the tasks and has an array do them; the caller builds the index. False if nobody waits for the array."""
    num_tasks = arguments.pop("num_tasks")
    arguments |= {"input": Path(arguments["input"]).resolve(), "output": Path(arguments["output"]).resolve(), "task_index": None}
    make_shards(**arguments, num_tasks=0)
    arguments.pop("task_index")
    folder, workers = Path(f"{arguments['output']}.jobs"), arguments["workers"]
    return run_array(make_shards, arguments, num_tasks=num_tasks, workers=workers, folder=folder, slurm=slurm)


def _print_doubts(stats: dict[str, Any]) -> None:
    """Prints the counts of what a corpus rarely has on purpose; nothing where there is none of it."""
    if stats["out_of_phase_files"]:
        print(f"{stats['out_of_phase_files']} files have channels that cancel each other: their first channel is taken")
    if stats["hours_outside_segments"]:
        print(f"{stats['hours_outside_segments']:.2f} hours of the files lie outside the segments and are left out")
    if stats["overlapping_segments"]:
        print(
            f"{stats['overlapping_segments']} segments overlap an earlier one of their file ({stats['overlapping_hours']:.2f} hours "
            f"are there again), {stats['overlapping_speakers']} of them one of another speaker"
        )
    if stats["repeated_audio"]:
        print(
            f"{stats['repeated_audio']} clips are sample for sample those of another one ({stats['repeated_hours']:.2f} hours are "
            f"there again); {stats['audio_of_several_speakers']} of the clips stand under several speakers"
        )
    if stats["changed_in_input"]:
        print(f"{stats['changed_in_input']} utterances have changed in the input since they were prepared, and stay as they were")
    if stats["gone_from_input"]:
        print(f"{stats['gone_from_input']} utterances are no longer in the input; what was prepared of them stays")


@command("prep/make_shards")
def main(config: DictConfig) -> None:
    """Prepares and prints what came out."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    arguments = {str(name): value for name, value in settings.items() if name not in ("debug", "launcher", "slurm")}
    if is_array(config.launcher, config.task_index) and not _as_array(arguments, Slurm(**config.slurm)):
        return
    stats = make_shards(**arguments)
    if "utterances" not in stats:
        print(f"{stats['tasks']} tasks; a run with neither num_tasks nor task_index finishes the shard set")
        return
    print(
        f"{stats['utterances']} utterances, {stats['hours']:.2f} hours, {stats['speakers']} speakers in {stats['shards']} shards"
    )
    print(f"{stats['joined_clips']} short clips joined into {stats['joined']} utterances; {stats['short']} utterances stay short")
    print(f"{stats['skipped']} skipped {stats['skipped_by_reason'] or ''}; {stats['clipped_files']} files clip")
    kinds = f" ({counted(stats['ignored_by_suffix'])})" if stats["files_ignored"] else ""
    print(
        f"{stats['files']} files: {stats['files_used']} used, {stats['files_skipped']} skipped, {stats['files_ignored']} ignored{kinds}"
    )
    _print_doubts(stats)
    for name in ("speaker", "recording"):
        share = stats[f"same_{name}_share"]
        known = "is unknown" if share is None else f"is the same in {share:.2%} of the pairs that may be mixed"
        print(f"the {name} {known}")


if __name__ == "__main__":
    main()
