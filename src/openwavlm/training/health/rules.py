"""The health rules: each judges a window of updates (docs/training.md)."""

from collections.abc import Callable
from dataclasses import dataclass

from openwavlm.training.health import learning, machine, network
from openwavlm.training.health.judgement import Judgement, Known
from openwavlm.training.health.window import Window


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: Its name in `health.csv` and `summary.json`.
        title: Property of a sound run.
        judged: Windows in which it is judged.
        judge: The rule itself; None where there is nothing to judge.
        of_machine: Whether it concerns the speed of the machine, and no figure of the run depends on it.
    """

    name: str
    title: str
    judged: str
    judge: Callable[[Window, Known], Judgement | None]
    of_machine: bool = False


_SETTLED = "from the later of 2 % of the updates and update 2,000"
_ALWAYS = "in every window"
_NOT_SHARED = ", unless other programs take the cores of a CPU run"
RULES = (
    Rule("unigram", "masked loss below guessing by label frequency", _SETTLED, learning.unigram),
    Rule(
        "count_table",
        "masked loss below guessing from the nearest unmasked labels",
        "from the later of 15 % of the updates and update 2,000",
        learning.count_table,
    ),
    Rule(
        "unmasked_accuracy",
        "unmasked accuracy not below masked accuracy",
        "in the first 5 % of the updates from random weights",
        learning.unmasked_accuracy,
    ),
    Rule("perplexity", "predictions spread over the labels", _SETTLED, learning.predicted_perplexity),
    Rule("gradient_flow", "every block has a finite gradient", "with 3 measurements in a window", network.gradient_flow),
    Rule("gradient_growth", "no block's gradient far above its usual norm", "from the sixth window", network.gradient_growth),
    Rule("dead_channels", "no silent channels of the extractor", _ALWAYS, network.dead_channels),
    Rule("void_updates", "few skipped updates", _ALWAYS, network.skipped_updates),
    Rule(
        "data_wait",
        "little waiting for the loader",
        f"with loader.workers, from a launch's second window{_NOT_SHARED}",
        machine.data_wait,
        of_machine=True,
    ),
    Rule(
        "throughput",
        "not slower than before",
        f"from a launch's seventh window{_NOT_SHARED}",
        machine.throughput,
        of_machine=True,
    ),
    Rule("unreadable_rows", "rows can be read", _ALWAYS, machine.unreadable_rows),
)
