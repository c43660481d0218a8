"""Independent tasks in this process or in a local pool, with a progress bar."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from openwavlm.runtime.processes import leave_with_parent, start_fork_server
from openwavlm.runtime.progress import ProgressBar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int = 1, description: str = "", visible: bool = True
) -> Generator[Result, None, None]:
    """Yields `function(job)` for every job in the order in which they finish, and shows a progress bar.

    Args:
        function: A function of a module, so that it can be sent to another process, or a `partial` of one.
        jobs: Its arguments.
        workers: Number of processes; 1 runs everything in this process.
        description, visible: As in `ProgressBar`.

    Raises:
        ValueError: If `workers` is below 1.
        OSError: If a worker process was killed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, but is {workers}")
    with ProgressBar(len(jobs), description, visible=visible) as bar:
        results = map(function, jobs) if workers == 1 or len(jobs) < 2 else _in_pool(function, jobs, min(workers, len(jobs)))
        for result in results:
            bar.advance()
            yield result


def _in_pool(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    # A fork server imports numpy and webdataset once (about four seconds) and forks workers without threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(function, "func", function).__module__])
    start_fork_server()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        futures = [pool.submit(function, job) for job in jobs]
        if _is_broken(pool):  # the job that was submitted at that moment may be lost: its future never ends
            raise BrokenProcessPool
        for future in as_completed(futures):
            yield future.result()
    except (BrokenProcessPool, OSError) as error:
        # A worker that starts while another dies fails with its pipe's error ("handle is closed").
        if not isinstance(error, BrokenProcessPool) and not _is_broken(pool):
            raise
        raise OSError(
            f"a worker process was killed, probably for lack of memory: run again with fewer workers than {workers}; finished "
            "work is kept"
        ) from error
    finally:
        # After an error or Ctrl-C, running tasks, which may take minutes, are ended: the next run repeats them.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def _is_broken(pool: ProcessPoolExecutor) -> bool:
    """True if a worker was killed: the pool then refuses jobs."""
    try:
        pool.submit(int)
    except BrokenProcessPool:
        return True
    return False


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_with_parent()
