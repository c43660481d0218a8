"""`openwavlm iterate`: labels, training, probes, labels again."""

import logging

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.pipeline.iterate import iterate
from openwavlm.pipeline.stages import graph_lines
from openwavlm.runs.compose import plain
from openwavlm.runs.names import run_folder

log = logging.getLogger(__name__)


@command("iterate")
def main(config: DictConfig) -> None:
    """The command `openwavlm iterate`."""
    values = plain(config)
    directory = run_folder(values["name"])
    summary = iterate(values, directory.resolve())
    if values["dry_run"]:
        log.info("%s", "\n".join(graph_lines(summary["stages"])))
        return
    for number, figures in enumerate(summary["iterations"], start=1):
        masked = figures["masked"]
        compared = [part["cross_entropy"] for part in (masked, masked["count_table"], masked["unigram"])]
        log.info("iteration %d: masked cross-entropy %.3f (count table %.3f, unigram %.3f)", number, *compared)
    log.info("report: %s, figures: %s, model: %s", *(directory / name for name in ("report.html", "summary.json", "export")))
