"""`openwavlm quality`: how good labels and layers are."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.evaluation.quality import judge
from openwavlm.evaluation.quality_rows import text_table
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.report.quality_page import write_quality
from openwavlm.runs.compose import plain

log = logging.getLogger(__name__)


@command("quality")
def main(config: DictConfig) -> None:
    """The command `openwavlm quality`."""
    values = plain(config)
    values.pop("debug")
    asked = QualitySettings(**values)
    result, table = judge(asked)
    write_quality(Path(asked.output), result, table)
    lines = list(result["sentences"])
    for condition in dict.fromkeys(row.condition for row in table):
        lines += ["", condition, text_table([row for row in table if row.condition == condition])]
    sys.stdout.write("\n".join(lines) + "\n")
    log.info("wrote %s: quality.html, quality.png, quality.json, quality.tsv", asked.output)
