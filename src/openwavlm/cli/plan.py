"""`openwavlm plan`: cost of a run."""

import json
import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.planning.budget import Recipe
from openwavlm.planning.plan import Question, lines_of, plan_run
from openwavlm.runs.compose import plain
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.config import RunConfig, with_placeholders

log = logging.getLogger(__name__)


@command("plan")
def main(config: DictConfig) -> None:
    """The command `openwavlm plan`."""
    values = plain(config)
    question = Question(**{key: values.pop(key) for key in Question.__dataclass_fields__})
    run = RunConfig.of(with_placeholders(values))
    question = question.of(HydraConfig.get().runtime.choices.get("experiment"))
    checkpoints = run.callbacks.kept_of(run.optim.updates)
    figures = plan_run(Recipe(run, (question.classes,)), question, checkpoints)
    sys.stdout.write("\n".join(lines_of(figures)) + "\n")
    if question.json:
        path = Path(str(question.json))
        write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
        log.info("wrote %s", path)
