"""Wait for a processor core: on a shared CPU, time that other programs took from the training."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from openwavlm.runtime.processes import children_of


def _waits(processes: Sequence[int]) -> dict[int, float] | None:
    """Seconds that the main thread of each process was ready to run without a core; None where the system does not count them.

    Source: Linux, `Documentation/scheduler/sched-stats.rst`, /proc/PID/schedstat, second field.
    """
    waits = {}
    for process in processes:
        try:
            waits[process] = int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):  # the process has ended, or the kernel has no such figures
            continue
    return waits or None


def _stolen() -> float:
    """Seconds that a hypervisor has taken from an average core; 0 where that is unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
    except (OSError, IndexError, ValueError):
        return 0.0


class CoreWait:
    """Measures the wait of processes for a core; by default of this process and its children, the loader's workers."""

    def __init__(self, processes: Callable[[], Sequence[int]] = lambda: [os.getpid(), *children_of(os.getpid())]) -> None:
        self._processes = processes
        self._waits, self._stolen = _waits(processes()) or {}, _stolen()

    def lap(self) -> float | None:
        """Longest wait of a process since the last call, seconds; None where the system does not count it."""
        waits, stolen = _waits(self._processes()), _stolen()
        before, before_stolen = self._waits, self._stolen
        self._waits, self._stolen = waits or {}, stolen
        if waits is None:
            return None
        return max(wait - before.get(process, 0.0) for process, wait in waits.items()) + stolen - before_stolen
