"""A trial runs the step of a training, and its figures are those of a clock of the test."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openwavlm.batches.loader import StepBatch
from openwavlm.planning import trial
from openwavlm.planning.budget import Recipe
from openwavlm.runs.compose import plain
from openwavlm.training.build import make_model
from openwavlm.training.config import RunConfig, with_placeholders
from runs import TINY_MODEL, compose
from steps import fit, training_module

CLOCK = {"now": 0.0}
TINY = [
    "name=x", "experiment=wavlm_nano", *TINY_MODEL, "batch.seconds=4", "batch.micro_seconds=4", "batch.max_seconds=2", "optim.updates=4",
    "optim.warmup_updates=0", "model.dropout=0.1",
]  # fmt: skip


def step(seconds: float, update: float) -> Any:
    def micro_batch(batch: object) -> None:
        CLOCK["now"] += seconds

    return SimpleNamespace(micro_batch=micro_batch, update=lambda: update, device=torch.device("cpu"))


def batches(wait: float, count: int | None = None) -> Any:
    """Micro-batches of 64,000 samples that take `wait` seconds to arrive; as many as asked for."""
    for _ in itertools.count() if count is None else range(count):
        CLOCK["now"] += wait
        yield SimpleNamespace(valid_samples=64_000)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK["now"] = 100.0
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: CLOCK["now"]))


def test_micro_batches_are_timed_for_as_long_as_asked_and_an_update_is_shared_by_its_micro_batches():
    # 0.5 s of waiting and 1.5 s of computing: five micro-batches are the first to fill 9 s; an update of 4 s has eight of them.
    found = trial._timed(step(1.5, 4.0), batches(0.5), 9.0, slots=8)
    whole = 5 * 2.0 + 4.0 * 5 / 8
    assert found["audio_seconds_a_second"] == pytest.approx(5 * 4.0 / whole)
    assert found["wait_share"] == pytest.approx(2.5 / whole)
    assert found["seconds_a_micro_batch"] == pytest.approx(whole / 5)
    assert found["peak_memory_bytes"] > 1e6


def test_two_micro_batches_are_timed_at_least_and_no_more_than_there_are():
    slow = trial._timed(step(50.0, 0.0), batches(0.0), 1.0, slots=1)
    assert slow["seconds_a_micro_batch"] == 50.0 and slow["audio_seconds_a_second"] == pytest.approx(8.0 / 100)
    seconds = iter([50.0, 10.0, 1.0])
    uneven = step(0.0, 0.0)
    uneven.micro_batch = lambda batch: CLOCK.update(now=CLOCK["now"] + next(seconds))
    assert trial._timed(uneven, batches(0.0), 1.0, slots=1)["seconds_a_micro_batch"] == 30.0
    few = trial._timed(step(1.0, 0.0), batches(0.0, count=3), 100.0, slots=1)
    assert few["audio_seconds_a_second"] == pytest.approx(4.0)


@pytest.mark.parametrize("overrides", [[], ["loss.unmasked=0.5", "loss.logmel=1.0", "loss.warm_share=0.5", "optim.ema=0.9"]])
def test_a_trial_takes_the_step_of_a_training(overrides):
    config = RunConfig.of(with_placeholders(plain(compose([*TINY, *overrides]))))
    batch = trial.synthetic_batch(Recipe(config, (20, 7)))
    torch.manual_seed(0)
    step = trial._Step(config, (20, 7), torch.device("cpu"))
    step.micro_batch(batch)
    step.update()
    torch.manual_seed(0)
    module = training_module(
        make_model(config, (20, 7)),
        optim=config.optim,
        loss=config.loss,
        mixing=config.mixing,
        seed=config.seed,
        target_weights=config.loss.target_weights(2),
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, [StepBatch(0, 0, [batch])])
    trained = module.state_dict()
    assert set(trained) == set(step.module.state_dict()) and not all(torch.equal(trained[name], before[name]) for name in trained)
    for name, value in step.module.state_dict().items():
        assert torch.equal(value, trained[name]), name
