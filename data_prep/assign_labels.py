"""Labels a shard set with a codebook: `python data_prep/assign_labels.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli import command
from openwavlm.labelling.assign import assign_labels


@command("prep/assign_labels")
def main(config: DictConfig) -> None:
    """Runs `assign_labels` with the configuration's values."""
    assign_labels(
        Path(config.shards),
        Path(config.codebook) if config.codebook else None,
        Path(config.output),
        teacher=Path(config.teacher) if config.teacher else None,
        mode=config.mode,
        carry_from=Path(config.carry_from) if config.carry_from else None,
        workers=config.workers,
        packs=config.packs,
        max_skip_rate=config.max_skip_rate,
        num_tasks=config.num_tasks,
        task_index=config.task_index,
    )


if __name__ == "__main__":
    main()
