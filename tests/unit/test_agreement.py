"""What several processes agree on: digests of the plan, sums and requests of a step, and errors that end all of them."""

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from openwavlm.runtime.collectives import Ranks, on_rank_zero, together
from openwavlm.training.control import Control

FORK = multiprocessing.get_context("fork")


def error_of(function: Callable[[], object]) -> str:
    try:
        return f"gave {function()!r}"
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _step(control: Control, masked: int, digest: int, own_ms: float = 0.0) -> Any:
    control.begin(masked, digest, own_ms)
    return control.finish()


def _fails_on(rank: int, failing: int) -> Callable[[], int]:
    def function() -> int:
        if rank == failing:
            raise ValueError(f"no file on {rank}")
        return 10 + rank

    return function


def _asks(rank: int, folder: Path) -> dict[str, Any]:
    control, ranks = Control(folder), Ranks.current()
    found: dict[str, Any] = {"ranks": (ranks.rank, ranks.size)}
    # Equal plans; then plans of which rank 1 has a larger, and a smaller, digest.
    found["equal"] = _step(control, 3 + rank, 2**40 - 1, 1.5 + rank)
    for name, other in (("larger", 6), ("smaller", 4)):
        found[name] = error_of(lambda other=other: _step(control, 1, other if rank else 5))
    if rank == 1:
        control.ask_stop("a test")
    found["stop"] = _step(control, 1, 7)
    control._stop = False
    if rank == 0:
        (folder / "save_now").touch()
    dist.barrier()
    found["save"] = [_step(control, 1, 7) for _ in range(2)]
    if rank == 1:
        control._on_signal(signal.SIGUSR1, None)
    found["requeue"] = _step(control, 1, 7)
    found["figures"] = control.sum(torch.tensor([1.0 + rank, 0.5], dtype=torch.float64)).tolist()

    own = torch.tensor([rank + 1, 5])
    found["sum"] = (ranks.sum(own).tolist(), own.tolist())
    found["of rank zero"] = ranks.of_rank_zero(torch.tensor([rank + 1, 5])).tolist()
    found["gather"] = ranks.gather({"rank": rank})
    found["together"] = [error_of(lambda f=f: ranks.together(_fails_on(rank, f))) for f in (-1, 0, 1)]
    found["both fail"] = error_of(lambda: ranks.together(_fails_on(rank, rank)))
    found["training together"] = [error_of(lambda f=f: together(_fails_on(rank, f))) for f in (-1, 0, 1)]
    found["on rank zero"] = [error_of(lambda f=f: on_rank_zero(_fails_on(rank, f))) for f in (-1, 0, 1)]
    return found


def _process(rank: int, folder: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    answers.put((rank, _asks(rank, folder)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder, queue = tmp_path_factory.mktemp("ranks"), FORK.Queue()
    processes = [FORK.Process(target=_process, args=(rank, folder, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return [found[0], found[1]]


def test_every_process_knows_the_sums_of_the_step_and_each_ranks_own_time(answers):
    for found in answers:
        assert (found["equal"].units, found["equal"].own_us) == (3 + 4, (1500, 2500))
        assert not (found["equal"].stop or found["equal"].save or found["equal"].requeue)
        assert found["figures"] == [3.0, 1.0]
    assert [found["ranks"] for found in answers] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("other", ["larger", "smaller"])
def test_two_processes_with_different_plans_both_stop(answers, other):
    for found in answers:
        assert found[other].startswith(
            "RuntimeError: the ranks planned different data, since their shards, labels or versions differ"
        )


def test_what_one_process_is_asked_all_do_once(answers):
    for found in answers:
        flags = [(step.stop, step.save, step.requeue) for step in (found["stop"], *found["save"], found["requeue"])]
        assert flags == [(True, False, False), (False, True, False), (False, False, False), (True, False, True)]


def test_sums_and_gathered_values_are_those_of_both_processes(answers):
    for rank, found in enumerate(answers):
        assert found["sum"] == ([3, 10], [rank + 1, 5]), "the given tensor stays as it is"
        assert found["of rank zero"] == [1, 5]
        assert found["gather"] == [{"rank": 0}, {"rank": 1}]


@pytest.mark.parametrize("name", ["together", "training together"])
def test_an_error_of_one_process_is_raised_in_both(answers, name):
    for rank, found in enumerate(answers):
        failed = [f"ValueError: rank {failing}: no file on {failing}" for failing in (0, 1)]
        assert found[name] == [f"gave {10 + rank}", *failed]
        assert found["both fail"] == failed[0]


def test_what_rank_zero_does_alone_gives_both_its_result_or_its_error(answers):
    for found in answers:
        assert found["on rank zero"] == ["gave 10", "ValueError: no file on 0", "gave 10"]


# --- one process --------------------------------------------------------------------------------------------------------


def test_one_process_has_its_own_totals(tmp_path):
    totals = _step(Control(tmp_path), 17, 5, 0.25)
    assert (totals.units, totals.own_us) == (17, (250,))
    assert Ranks.current() == Ranks(0, 1) and Ranks().gather(3) == [3]
    assert together(lambda: 4) == on_rank_zero(lambda: 4) == Ranks().together(lambda: 4) == 4
