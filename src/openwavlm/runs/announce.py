"""Log lines at the start of a training."""

import logging

from openwavlm.batches.plan import PlanStatistics
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.live import LiveProbe
from openwavlm.planning.budget import GIB, Recipe, wasted_share
from openwavlm.runs.beginning import Beginning, Launch
from openwavlm.training.config import RunConfig

log = logging.getLogger(__name__)


def announce(launch: Launch, beginning: Beginning, plan: PlanStatistics, probes: LiveProbe | None) -> None:
    """Logs the size, data, plan and cost of a launch."""
    config, opened = launch.config, beginning.data
    recipe = Recipe(config, opened.classes)
    log.info(
        "%s %s at update %d of %d: %.2f M parameters, %s classes",
        "resuming" if beginning.step else "starting",
        launch.directory,
        beginning.step,
        config.optim.updates,
        sum(recipe.parameters.values()) / 1e6,
        " + ".join(map(str, opened.classes)),
    )
    _announce_data(config, opened, plan)
    for line in cost_lines(recipe, launch.world_size):
        log.info("%s", line)
    if probes is not None:
        log.info(
            "probes: every %d updates %.0f s of audio on each process, %.2f %% of the work of training (by seconds of audio)",
            probes.settings.every,
            probes.audio_seconds,
            100 * probes.share_of_training(config.batch.seconds, launch.world_size),
        )


def _announce_data(config: RunConfig, opened: OpenData, plan: PlanStatistics) -> None:
    batching, data = config.batch, opened.summary()
    if not data["validation_rows"] and opened.data.validation_share:
        log.warning(
            "no speaker is held out, so there is no validation: the run keeps its share of %g, below which no speaker of these data has "
            "its hash; to split anew, start a new run",
            opened.data.validation_share,
        )
    elif not data["validation_rows"]:
        log.warning("no speaker is held out (data.validation_share=0), so there is no validation")
    elif opened.settlement:
        log.info("%s", opened.settlement)
    if data["validation_rows"] and not data["usable_validation_rows"]:
        log.warning(
            "there is no validation: each of the %d held-out utterances is shorter than batch.min_seconds=%g; lower it, or hold out other "
            "speakers (a larger data.validation_share or another data.split_seed, with a codebook that is fitted with the same)",
            data["validation_rows"],
            batching.min_seconds,
        )
    if data["validation_rows"] and not data["validation_speakers"]:
        log.warning("no speaker is known: whole recordings are held out, so a speaker may be on both sides of the split")
    log.info(
        "data: %s h of %s speakers, %s s of %s speakers (%d utterances) held out; about %.1f passes",
        data["training_hours"],
        data["training_speakers"],
        data["validation_seconds"],
        data["validation_speakers"],
        data["validation_rows"],
        config.optim.updates * batching.seconds / 3600 / max(1e-9, data["training_hours"]),
    )
    log.info(
        "plan: %.2f %% padding, %.2f %% of the audio left out (%d utterances shorter than %g s)",
        100 * plan.padding_share,
        100 * plan.lost_share,
        plan.too_short,
        batching.min_seconds,
    )


def cost_lines(recipe: Recipe, world_size: int) -> list[str]:
    """Cost of an update, and its distribution over the processes."""
    batching = recipe.config.batch
    slots, rounds = batching.slots, -(-batching.slots // world_size)
    lines = [
        f"update: {batching.seconds:g} s of audio{_estimate(recipe, world_size)}",
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


def _estimate(recipe: Recipe, world_size: int) -> str:
    """Operations and memory, counted in a fraction of a second; a failure to count them must not end a training."""
    try:
        operations = recipe.flops_a_second() * recipe.config.batch.seconds
        memory = recipe.memory(world_size).total / GIB
    except Exception as error:  # counting uses parts of torch that a new version may change
        log.warning("operations and memory of an update cannot be estimated: %s: %s", type(error).__name__, error)
        return ""
    return f", {operations:.2g} operations; about {memory:.2g} GiB a process (an estimate)"
