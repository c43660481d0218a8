"""Prepares a corpus as shards with an index: `python data_prep/make_shards.py --help`."""

from omegaconf import DictConfig, OmegaConf

from openwavlm.cli import command
from openwavlm.data.prepare import make_shards


@command("prep/make_shards")
def main(config: DictConfig) -> None:
    """Prepares and prints what came out."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    settings.pop("debug")
    stats = make_shards(**{str(name): value for name, value in settings.items()})
    if "utterances" not in stats:
        print(f"{stats['tasks']} tasks; a run with neither num_tasks nor task_index finishes the shard set")
        return
    print(
        f"{stats['utterances']} utterances, {stats['hours']:.2f} hours, {stats['speakers']} speakers in {stats['shards']} shards"
    )
    print(f"{stats['joined_clips']} short clips joined into {stats['joined']} utterances; {stats['short']} utterances stay short")
    print(f"{stats['skipped']} skipped {stats['skipped_by_reason'] or ''}; {stats['clipped_files']} files clip")
    for name in ("speaker", "recording"):
        share = stats[f"same_{name}_share"]
        known = "is unknown" if share is None else f"is the same in {share:.2%} of the pairs that may be mixed"
        print(f"the {name} {known}")


if __name__ == "__main__":
    main()
