"""Verifies shards (and labels) by checksums, counts and a recomputed sample: `openwavlm verify --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.runs.compose import paths
from openwavlm.runtime.atomic import write_json
from openwavlm.shards.index import Index
from openwavlm.shards.verify import verify_shards
from openwavlm.shards.verify_input import verify_input


@command("prep/verify")
def main(config: DictConfig) -> None:
    """Verifies shards and labels, prints the result, and fails on damage."""
    result = verify_shards(config.shards, share=config.share, seed=config.seed, workers=config.workers)
    problems = list(result.problems)
    verdicts, damaged = [result.sentence()], [str(config.shards)] if problems else []
    if config.input is not None:
        made = verify_input(config.shards, config.input, share=config.share, seed=config.seed, workers=config.workers)
        verdicts.append(made.sentence())
        problems += made.problems
        damaged += [str(config.input)] if made.problems else []
    if config.labels is not None:
        from openwavlm.labels.verify import labels_of_teacher, verify_labels

        index, teacher = Index.open(config.shards), Path(config.teacher) if config.teacher else None
        folders = paths(config.labels)
        of_teacher = labels_of_teacher(folders, teacher)
        for folder in folders:
            labels = verify_labels(
                folder,
                index,
                teacher=teacher if folder in of_teacher else None,
                share=config.share,
                seed=config.seed,
                device=config.device,
                tolerance=config.tolerance,
                workers=config.workers,
            )
            verdict = labels.sentence() if len(folders) == 1 else f"{folder}: {labels.sentence()}"
            verdicts.append(verdict)
            if not labels.passed:
                problems.append(verdict)
                damaged.append(str(folder))
    print("\n".join(verdicts))
    if config.json is not None:
        write_json(Path(config.json), {"verdicts": verdicts, "problems": problems})
    if problems:
        print("\n".join(problems[: config.show]))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ValueError(f"{count} in {', '.join(damaged)}: restore the files from a copy, or make them again")
