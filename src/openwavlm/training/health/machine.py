"""Rules on the machine: waiting, throughput, rows that cannot be read."""

import numpy as np

from openwavlm.training.health.judgement import Judgement, Known, Lap
from openwavlm.training.health.window import Window

_LEAST_HISTORY = 5  # windows that a median over windows needs
# Other programs share a CPU's clock and caches without a wait for a core.
_CPU_THROUGHPUT_SHARE = 0.5


def data_wait(window: Window, known: Known) -> Judgement | None:
    """Little waiting for the loader's workers; not judged on a shared CPU."""
    if known.lap is None or known.lap.waited is None or known.lap.shared:
        return None
    share, limit = known.lap.waited / max(known.lap.seconds, 1e-9), known.settings.wait_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{100 * share:.0f} % of the time was spent waiting for data: raise loader.workers or loader.prefetch, or put the shards on a "
        "faster disk",
    )


def speed_of(window: Window, lap: Lap) -> float:
    """Seconds of audio per second of wall time."""
    return window.sums["samples"] / 16_000 / max(lap.seconds, 1e-9)


def throughput(window: Window, known: Known) -> Judgement | None:
    """The run does not get slower; not judged on a shared CPU."""
    if known.lap is None or known.lap.shared or len(known.speeds) < _LEAST_HISTORY:
        return None
    speed, usual = speed_of(window, known.lap), float(np.median(known.speeds))
    share = known.settings.throughput_share
    limit = (min(share, _CPU_THROUGHPUT_SHARE) if known.on_cpu else share) * usual
    return Judgement(
        speed,
        limit,
        speed < limit,
        f"the speed is {speed:.0f} s of audio a second, the launch's median {usual:.0f}: look for other programs on this machine and for "
        "throttling",
    )


def unreadable_rows(window: Window, known: Known) -> Judgement | None:
    """Few rows cannot be read."""
    if not window.sums["rows"]:
        return None
    share, limit = window.sums["unreadable"] / window.sums["rows"], known.settings.unreadable_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.sums['unreadable']:.0f} of {window.sums['rows']:.0f} rows could not be read: run openwavlm verify on the shards",
    )
