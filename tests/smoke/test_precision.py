"""Training in lower precision follows float32; an update whose gradient is not finite is skipped, and no other."""

import logging
from pathlib import Path

import pytest
import torch

from runs import SETTINGS, launch, make_data, table, weights

RUN = [*SETTINGS, "optim.updates=10", "callbacks.checkpoint_every=1", "callbacks.keep_last=20", "callbacks.validate_every=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def float32(data, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("float32")
    assert launch([*RUN, *data], directory) == [0]
    return directory


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lower_precision_follows_float32(data, float32, tmp_path, precision):
    assert launch([*RUN, *data, f"precision={precision}"], tmp_path) == [0]
    pairs = list(zip(table(tmp_path), table(float32), strict=True))
    assert [row["void"] for row, _ in pairs] == ["0"] * 10
    assert any(row["loss"] != other["loss"] for row, other in pairs), "it must be another precision"
    assert all(float(row["loss"]) == pytest.approx(float(other["loss"]), rel=0.02) for row, other in pairs)
    # The first gradient is of the same weights: the loss's scale must have been taken out of it again.
    assert float(pairs[0][0]["grad_norm"]) == pytest.approx(float(pairs[0][1]["grad_norm"]), rel=0.05)
    assert ("loss_scale.scale" in weights(tmp_path, 10)) == (precision == "16-mixed")


def _not_a_number() -> None:
    """The fifth update's second micro-batch gets a loss that is not a number."""
    from openwavlm.training import masked_prediction as modules

    real = modules.forward_micro_batch
    seen = []

    def forward_micro_batch(model, batch, waveforms, **options):
        output = real(model, batch, waveforms, **options)
        if model.training:
            seen.append(batch.id)
            if len(seen) == 4 * 3 + 2:
                (figures,) = output.sets
                return output._replace(sets=(figures._replace(cross_entropy_sum=figures.cross_entropy_sum * float("nan")),))
        return output

    modules.forward_micro_batch = forward_micro_batch
    logging.getLogger().setLevel(logging.INFO)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_update_of_a_loss_that_is_not_a_number_is_skipped_and_named(data, tmp_path, precision):
    assert launch([*RUN, *data, f"precision={precision}", "optim.ema=0"], tmp_path, patch=_not_a_number) == [0]
    assert [row["void"] for row in table(tmp_path)] == ["0"] * 4 + ["1"] + ["0"] * 5
    before, after, later = (weights(tmp_path, step) for step in (4, 5, 6))
    model = [name for name in before if name.startswith("model.")]
    assert all(torch.equal(before[name], after[name]) for name in model), "the skipped update moves nothing"
    assert any(not torch.equal(after[name], later[name]) for name in model), "and the next one moves again"
    said = (tmp_path / "logs" / "rank-0000.log").read_text()
    assert "update 5 was skipped" in said and "the loss is not finite in speech epoch" in said
    if precision == "16-mixed":
        assert float(after["loss_scale.scale"]) == float(before["loss_scale.scale"]) / 2


def test_a_run_in_float16_that_was_stopped_equals_one_that_was_not(data, tmp_path):
    overrides = [*RUN, *data, "precision=16-mixed"]
    assert launch(overrides, tmp_path / "whole") == [0]
    assert launch([*overrides, "stop_after=6"], tmp_path / "halves") == [0]
    assert launch(overrides, tmp_path / "halves") == [0]
    first, second = weights(tmp_path / "whole", 10), weights(tmp_path / "halves", 10)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("first", "second", "strategy"),
    [("16-mixed", "bf16-mixed", "ddp"), ("32-true", "16-mixed", "ddp"), ("16-mixed", "32-true", "fsdp")],
)
def test_a_run_goes_on_in_another_precision_where_that_is_allowed(data, tmp_path, first, second, strategy):
    size = 1 if strategy == "ddp" else 2
    overrides = [*RUN, *data, f"trainer.strategy={strategy}"]
    assert launch([*overrides, f"precision={first}", "stop_after=4"], tmp_path, world_size=size) == [0] * size
    change = [f"precision={second}", "allow_change=[precision]"]
    assert launch([*overrides, *change], tmp_path, world_size=size) == [0] * size
    assert len(table(tmp_path)) == 10
    assert ("loss_scale.scale" in weights(tmp_path, 10)) == (second == "16-mixed")


def test_a_checkpoint_of_another_model_is_refused_and_binds_nothing(data, tmp_path):
    assert launch([*RUN, *data, "stop_after=2"], tmp_path) == [0]
    config = (tmp_path / "config.yaml").read_bytes()
    assert launch([*RUN, *data, "model.ffn_dim=48", "allow_change=[model]"], tmp_path) == [1]
    assert (tmp_path / "config.yaml").read_bytes() == config
    assert launch([*RUN, *data, "stop_after=3"], tmp_path) == [0]
