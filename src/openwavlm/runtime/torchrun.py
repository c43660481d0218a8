"""`python -m torch.distributed.run` with one sentence for a failed process, for `trainer.devices` above 1."""

import logging
import signal
import sys

from openwavlm.runtime.interrupt import end_at_interrupt
from openwavlm.runtime.processes import ended


def main() -> None:
    """Runs the processes; exits with the status of the first that failed, or of a signal."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the same report, on many lines
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        # The other processes fail because of the killed one, or are ended by the launcher.
        killed = [failure for failure in error.failures.values() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
        _, first = error.get_first_failure()
        if killed:
            first = killed[0]
            sys.stderr.write(f"error: the training process {first.pid} (local rank {first.local_rank}) {ended(first.exitcode)}\n")
        raise SystemExit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


if __name__ == "__main__":
    end_at_interrupt()
    main()
