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
    sample = {"share": config.share, "seed": config.seed, "workers": config.workers}
    result = verify_shards(config.shards, **sample)
    checked = [(config.shards, result.sentence(), list(result.problems))]
    if config.input is not None:
        made = verify_input(config.shards, config.input, **sample)
        checked.append((config.input, made.sentence(), list(made.problems)))
    if config.labels is not None:
        from openwavlm.labels.verify import labels_of_teacher, verify_labels

        index, teacher = Index.open(config.shards), Path(config.teacher) if config.teacher else None
        folders = paths(config.labels)
        of_teacher = labels_of_teacher(folders, teacher)
        for folder in folders:
            model = teacher if folder in of_teacher else None
            labels = verify_labels(folder, index, teacher=model, device=config.device, tolerance=config.tolerance, **sample)
            verdict = labels.sentence() if len(folders) == 1 else f"{folder}: {labels.sentence()}"
            checked.append((folder, verdict, [] if labels.passed else [verdict]))
    verdicts = [verdict for _, verdict, _ in checked]
    problems = [problem for *_, found in checked for problem in found]
    print("\n".join(verdicts))
    if config.json is not None:
        write_json(Path(config.json), {"verdicts": verdicts, "problems": problems})
    if problems:
        print("\n".join(problems[: config.show]))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        damaged = ", ".join(str(folder) for folder, _, found in checked if found)
        raise ValueError(f"{count} in {damaged}: restore the files from a copy, or make them again")
