"""What a training says of itself before its first step."""

import logging
from pathlib import Path

from openwavlm.batches.plan import PlanStatistics
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.live import LiveProbe
from openwavlm.model.costs import count_parameters
from openwavlm.planning.budget import GIB, Recipe, recipe_of, wasted_share
from openwavlm.training.config import RunConfig

log = logging.getLogger(__name__)


def announce(
    config: RunConfig,
    opened: OpenData,
    plan: PlanStatistics,
    start: int,
    world_size: int,
    directory: Path,
    probes: LiveProbe | None = None,
) -> None:
    """Logs the run's size, data, plan and cost.

    Args:
        config: Of the run.
        opened: The data.
        plan: Of the first epochs.
        start: Updates that are done.
        world_size: Processes.
        directory: The run's.
        probes: Its probes while training.
    """
    recipe = recipe_of(config, opened.classes)
    parameters = sum(count_parameters(recipe.model, recipe.head).values())
    log.info(
        "%s %s at update %d of %d: %.2f M parameters, %s classes",
        "resuming" if start else "starting",
        directory,
        start,
        recipe.updates,
        parameters / 1e6,
        " + ".join(map(str, opened.classes)),
    )
    _announce_data(recipe, opened, plan)
    for line in cost_lines(recipe, world_size):
        log.info("%s", line)
    if probes is not None:
        log.info(
            "probes: every %d updates %.0f s of audio on each process, %.2f %% of the work of training (by seconds of audio)",
            probes.settings.every,
            probes.audio_seconds,
            100 * probes.share_of_training(recipe.batching.seconds, world_size),
        )


def _announce_data(recipe: Recipe, opened: OpenData, plan: PlanStatistics) -> None:
    batching, data = recipe.batching, opened.summary()
    if not data["validation_rows"]:
        log.warning("no speaker is held out (data.validation_share=%g): nothing will be validated", opened.data.validation_share)
    elif not data["validation_speakers"]:
        log.warning("no speaker is known: whole recordings are held out, so a voice may be on both sides of the split")
    log.info(
        "data: %s h of %s speakers, %s h of %s speakers held out; about %.1f passes",
        data["training_hours"],
        data["training_speakers"],
        data["validation_hours"],
        data["validation_speakers"],
        recipe.updates * batching.seconds / 3600 / max(1e-9, data["training_hours"]),
    )
    log.info(
        "plan: %.2f %% padding, %.2f %% of the audio left out (%d utterances shorter than %g s)",
        100 * plan.padding_share,
        100 * plan.lost_share,
        plan.too_short,
        batching.min_seconds,
    )


def cost_lines(recipe: Recipe, world_size: int) -> list[str]:
    """What an update costs, and how the processes share it.

    Args:
        recipe: What is trained.
        world_size: Processes.

    Returns:
        Lines to read.
    """
    batching = recipe.batching
    slots, rounds = batching.slots, -(-batching.slots // world_size)
    lines = [
        f"update: {batching.seconds:g} s of audio, {recipe.flops_a_second() * batching.seconds:.2g} operations; about "
        f"{recipe.memory(world_size).total / GIB:.2g} GiB a process (an estimate)",
        f"step: the {slots}-slot recipe on your {world_size} process(es): {rounds} micro-batches of {batching.micro_seconds:g} s each, "
        "same losses",
    ]
    waste = -slots % world_size
    if waste:
        lines.append(
            f"{waste} padding micro-batch(es) a step: {wasted_share(slots, world_size):.0%} of the work is waste; a divisor of {slots} "
            "avoids it"
        )
    return lines
