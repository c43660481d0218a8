"""One global step against the formula written out in float64: loss, gradient, logged sums, clipping, AdamW, running mean, dropout.

The encoder's hidden states come from the model in double precision, which the parity tests compare with other libraries; everything
that the step does with them is written out here frame by frame.
"""

import contextlib
import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import normalised_log_mel
from openwavlm.batches.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.batches.loader import StepBatch
from openwavlm.batches.settings import Mixing
from openwavlm.training import module as training
from openwavlm.training.forward import prepare_waveforms, seed_dropout
from openwavlm.training.health.figures import HealthFigures, block_gradients
from openwavlm.training.module import TrainingModule
from openwavlm.training.optim import Optim
from openwavlm.training.settings import Loss
from openwavlm.training.sums import SUMS, StepRecord
from steps import Ranks, fit, log_probabilities, micro_batch, mixtures, model, prepared, training_module


def three_micro_batches(classes: tuple[int, ...] = (7,)) -> list[PretrainBatch]:
    """Two rows, one of them mixed with the other; three, of which one is not readable and one takes noise; one."""
    noise = torch.randint(-3000, 3000, (1, 1500), generator=torch.Generator().manual_seed(8)).to(torch.int16)
    return [
        micro_batch(0, [4000, 2900], classes=classes, mix=mixtures((0, 1, 900, 100, 1800, 3))),
        micro_batch(1, [6100, 0, 3300], classes=classes, mix=mixtures((2, 3, 500, 40, 1200, -4)), noise=noise),
        micro_batch(2, [2500], classes=classes),
    ]


class Explicit:
    """A step's loss, sums and gradients by explicit sums over micro-batches, label sets and frames.

    Args:
        module: A copy of it computes in double precision; it stays as it is.
        micro_batches: The step's.
        step: Update from 0.
        masked: Masked frames of the whole step, N.
        shares: Each label set's part of the loss.
    """

    def __init__(
        self, module: TrainingModule, micro_batches: list[PretrainBatch], step: int, masked: int, shares: tuple[float, ...]
    ) -> None:
        learner, log_mels = copy.deepcopy(module.model).double(), copy.deepcopy(module.logmel_map)
        settings, updates = module.objective.loss, module.optim.updates
        fall = max(0.0, 1 - step / (settings.warm_share * updates))
        heads = [(learner.final_proj, learner.label_embeddings)]
        heads += [(head.final_proj, head.label_embeddings) for head in learner.other_heads]
        sums = dict.fromkeys(module.objective.layout.names, 0.0)
        classes = learner.num_classes
        self.marginal, self.activations = torch.zeros(classes, dtype=torch.float64), 0.0
        loss = torch.zeros((), dtype=torch.float64)
        for micro in micro_batches:
            if micro.weight == 0:
                continue
            waveforms = prepared(micro, normalised=learner.wavlm.config.normalise_waveform)
            encoded = learner.wavlm(waveforms, micro.num_samples, mask=micro.mask, layer_keep=micro.layer_keep)
            frames, penalty, count = encoded.final.flatten(0, 1), encoded.features.square().mean(), len(micro.masked_index)
            for number, (share, labels, (projection, embeddings)) in enumerate(
                zip(shares, micro.labels, heads, strict=True), start=1
            ):
                suffix = "" if number == 1 else f"_{number}"
                for part, weight, index in (
                    ("", 1.0, micro.masked_index),
                    ("unmasked", settings.unmasked * fall, micro.unmasked_index),
                ):
                    found = log_probabilities(frames, projection, embeddings, index)
                    places = labels.flatten()[index].long() + learner.special_rows
                    cross_entropy = -sum(found[frame, place] for frame, place in enumerate(places.tolist()))
                    correct = sum(int(found[frame].argmax()) == place for frame, place in enumerate(places.tolist()))
                    if weight:
                        loss = loss + share * weight * cross_entropy
                    if part == "":
                        sums[f"cross_entropy{suffix}"] += float(cross_entropy.detach())
                        sums[f"correct{suffix}"] += correct
                        if number == 1:
                            self.marginal += found.detach().exp()[:, learner.special_rows :].sum(0)
                    elif number == 1:
                        sums["unmasked_correct"] += correct
            loss = loss + settings.feature_penalty * penalty * count
            self.activations = self.activations + encoded.features.detach().abs().sum((0, 2))
            if log_mels is not None:
                errors = []
                for row, samples in enumerate(micro.num_samples.tolist()):
                    valid = int(num_frames(samples))
                    if valid:
                        target = normalised_log_mel(waveforms[row, :samples].float())
                        mapped = encoded.features[row, :, :valid].T @ log_mels.double().weight.T + log_mels.double().bias
                        errors += [(mapped - target).square().mean(1)]
                error = torch.cat(errors).mean()
                loss = loss + settings.logmel * fall * error * count
                sums["logmel_error"] += float(error.detach()) * count
            rows, width = micro.waveforms.shape
            masked_here, labelled = int((micro.mask & (micro.labels[0] >= 0)).sum()), int((micro.labels[0] >= 0).sum())
            for name, value in {
                "masked": masked_here,
                "penalty": float(penalty.detach()) * count,
                "unmasked": labelled - masked_here,
                "samples": int(micro.num_samples.sum()),
                "padded_samples": rows * width,
                "rows": rows,
                "unreadable": int((micro.num_samples == 0).sum()),
                "mixtures": len(micro.mix.row),
                "mask_frames": masked_here,
                "valid_frames": labelled,
            }.items():
                sums[name] += value
        self.sums = sums
        (loss / masked).backward()
        named = [(f"model.{name}", parameter) for name, parameter in learner.named_parameters()]
        named += [(f"logmel_map.{name}", parameter) for name, parameter in log_mels.named_parameters()] if log_mels else []
        # Micro-batches of padding give zeros where nothing else gives a gradient.
        self.gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in named if p.requires_grad}
        self.norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in self.gradients.values()))


WARM = Loss(unmasked=0.7, logmel=0.4)
SCENES: dict[str, dict[str, Any]] = {
    "cross-entropy and penalty": {"loss": Loss(feature_penalty=3.0), "step": 2},
    "both warm-up losses at update 3 of 20": {"loss": WARM, "step": 3},
    "both warm-up losses at their last update": {"loss": replace(WARM, warm_share=0.2), "step": 3},
    "the update after the warm-up": {"loss": replace(WARM, warm_share=0.2), "step": 4},
    "accuracy on unmasked frames is measured": {"step": 3, "unmasked_every": 4},
    "accuracy on unmasked frames is not due": {"step": 4, "unmasked_every": 4},
    "two label sets": {
        "classes": (7, 4),
        "loss": replace(WARM, logmel=0.0, targets=[3.0, 1.0]),
        "shares": (0.75, 0.25),
        "seed": 9,
    },
    "three label sets": {
        "classes": (7, 4, 3),
        "loss": replace(WARM, logmel=0.0, targets=[3.0, 1.0, 2.0]),
        "shares": (1 / 2, 1 / 6, 1 / 3),
        "seed": 9,
    },
    "special rows": {"special_rows": 4, "loss": WARM},
    "one of three ranks": {"control": Ranks(3, 50), "loss": WARM},
    "a padding micro-batch in front": {"padding": 0, "loss": WARM},
    "a padding micro-batch at the end": {"padding": 3, "loss": WARM},
    "float16's scale of the loss": {"float16": True, "loss": WARM},
    "waveforms normalised after mixing": {"config": {"normalise_waveform": True}, "loss": WARM},
    "a LayerNorm extractor before a pre-norm encoder": {"config": {"pre_norm": True, "extractor_norm": "layer"}},
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_step_of_three_unequal_micro_batches_is_the_sum_over_their_frames_divided_by_all_masked_frames(scene):
    values = {"loss": Loss(), "step": 5, "unmasked_every": 0, "shares": (1.0,), "classes": (7,), **SCENES[scene]}
    step, shares, control = values["step"], values["shares"], values.get("control", Ranks())
    micro_batches = three_micro_batches(values["classes"])
    if "padding" in values:
        micro_batches.insert(values["padding"], micro_batch(3, [5000, 4000], classes=values["classes"], weight=0.0))
    records: list[StepRecord] = []
    module = training_module(
        model(
            values["classes"], special_rows=values.get("special_rows", 0), seed=values.get("seed", 5), **values.get("config", {})
        ),
        loss=values["loss"],
        optim=Optim(updates=20, lr=1e-12, warmup_updates=0, clip_norm=1e9),
        control=control,
        records=records,
        target_weights=values["loss"].target_weights(len(values["classes"])),
        unmasked_every=values["unmasked_every"],
        float16=values.get("float16", False),
    )
    here = sum(len(micro.masked_index) for micro in micro_batches if micro.weight)
    expected = Explicit(module, micro_batches, step, here + control._elsewhere, shares)
    # The update before it leaves gradients and figures behind, and moves the weights by nothing that counts.
    before = [micro_batch(7, [3700], classes=values["classes"])]
    fit(module, [StepBatch(step - 1, 0, before), StepBatch(step, 0, micro_batches)])
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert found.keys() == expected.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        # DDP takes the mean over the ranks: a rank gives its share times their number.
        error = float((found[name].double() / control.world_size - gradient).abs().max())
        assert error <= 2e-4 * float(gradient.abs().max()) + 2e-6 * largest, name
    assert float(expected.gradients["model.wavlm.mask_embedding"].abs().max()) > 1e-3 * largest, (
        "a case without weight shows nothing"
    )

    record = records[1]
    assert record.step == step + 1
    assert record.grad_norm == pytest.approx(expected.norm * control.world_size, rel=1e-5)
    measured = values["unmasked_every"] > 0 and (step + 1) % values["unmasked_every"] == 0
    assert record.with_unmasked == measured
    if not measured and not (values["loss"].unmasked and step < values["loss"].warm_share * 20):
        expected.sums |= {"unmasked": 0, "unmasked_correct": 0}
    assert list(record.sums) == [
        *SUMS,
        *(f"{name}_{number}" for number in range(2, len(shares) + 1) for name in ("cross_entropy", "correct")),
    ]
    assert expected.sums["correct"] != expected.sums.get("correct_2"), "equal counts show nothing"
    for name, value in expected.sums.items():
        assert record.sums[name] == pytest.approx(value, rel=1e-5), name


def test_gradients_are_exchanged_once_a_step_after_the_last_micro_batch(monkeypatch):
    wanted: list[bool] = []
    real = TrainingModule._gradient_sync

    def gradient_sync(self: TrainingModule, *, wanted_now: bool) -> Any:
        wanted.append(wanted_now)
        return real(self, wanted=wanted_now)

    monkeypatch.setattr(TrainingModule, "_gradient_sync", lambda self, wanted: gradient_sync(self, wanted_now=wanted))
    fit(training_module(model()), [StepBatch(0, 0, three_micro_batches())])
    assert wanted == [False, False, True]


def test_between_exchanges_ddp_only_adds_gradients_up(monkeypatch):
    class Wrapped:
        def no_sync(self) -> str:
            return "no exchange"

    monkeypatch.setattr(training, "DistributedDataParallel", Wrapped)
    module = training_module(model())
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(model=Wrapped()))
    assert module._gradient_sync(wanted=False) == "no exchange"
    assert isinstance(module._gradient_sync(wanted=True), contextlib.nullcontext)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"feature_penalty": -1e-9}, "loss.feature_penalty must be a number that is not negative"),
        ({"unmasked": -1.0}, "loss.unmasked must be"),
        ({"logmel": math.inf}, "loss.logmel must be"),
        ({"warm_share": 0.0}, r"loss.warm_share must lie in \(0, 1\], but is 0.0"),
        ({"warm_share": 1.01}, "loss.warm_share must lie"),
        ({"targets": [1.0, 0.0]}, "loss.targets must be positive numbers"),
        ({"targets": [1.0, math.inf]}, "loss.targets must be positive numbers"),
    ],
)
def test_weights_of_the_loss_out_of_range_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loss(**values)


def test_limits_of_the_weights_are_allowed_and_sets_without_weights_count_alike():
    assert Loss(feature_penalty=0.0, unmasked=0.0, logmel=0.0, warm_share=1.0).target_weights(4) == [0.25] * 4
    assert Loss(targets=[3.0, 1.0]).target_weights(2) == [0.75, 0.25]
    with pytest.raises(ValueError, match=r"a weight for each label set of data\.sources, 3, but has 2"):
        Loss(targets=[3.0, 1.0]).target_weights(3)
    with pytest.raises(ValueError, match=r"a weight for each label set of data\.sources, 1, but has 2"):
        Loss(targets=[3.0, 1.0]).target_weights(1)


def test_the_warm_up_losses_fall_linearly_to_0():
    loss = Loss(warm_share=0.25)
    assert [loss.warm(step, 40) for step in (0, 1, 5, 9, 10, 11, 39)] == pytest.approx([1, 0.9, 0.5, 0.1, 0, 0, 0])


def test_the_gradient_is_clipped_as_a_whole():
    module = training_module(model(), optim=Optim(updates=20, warmup_updates=0, clip_norm=0.5))
    micro_batches = three_micro_batches()
    expected = Explicit(module, micro_batches, 7, sum(len(micro.masked_index) for micro in micro_batches), (1.0,))
    assert expected.norm > 2
    fit(module, [StepBatch(7, 0, micro_batches)])
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        found = module.get_parameter(name).grad.double() * expected.norm / 0.5
        assert float((found - gradient).abs().max()) <= 2e-4 * largest, name


class Watch(lightning.Callback):
    """What the optimiser had and made at each update."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Copies them."""
        self.rates.append([group["lr"] for group in pl_module.optimizers().param_groups])
        self.gradients.append({name: p.grad.double().clone() for name, p in pl_module.model.named_parameters()})
        self.weights.append({name: p.detach().double().clone() for name, p in pl_module.named_parameters()})


SCHEDULES = {
    # 3 updates up to 0.01, which the fourth has; then down to a tenth of it over the 9 that are left.
    "linear": [0.0025, 0.005, 0.0075, 0.01, 0.009, 0.008, 0.007, 0.006],
    # Down over the last quarter, the 3 updates from 9 on.
    "wsd": [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01, 0.01],
}


@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_and_their_running_mean_follow_adamw_written_out_and_a_skipped_update_leaves_them(schedule, decay):
    optim = Optim(
        updates=12,
        lr=0.01,
        warmup_updates=3,
        schedule=schedule,
        decay_share=0.25,
        final_share=0.1,
        betas=(0.8, 0.95),
        eps=0.01,
        weight_decay=0.2,
        decay=decay,
        clip_norm=0.5,
        ema=0.3,
        max_skip_rate=1.0,
    )
    records: list[StepRecord] = []
    module, watch = training_module(model(), optim=optim, records=records), Watch()
    assert (module.ema is not None) and not any(parameter.requires_grad for parameter in module.ema.parameters())
    before = {name: parameter.detach().double() for name, parameter in module.model.named_parameters()}
    steps = [StepBatch(step, 0, [micro_batch(10 + step, [3000, 2000])]) for step in range(8)]
    calls = iter(range(len(steps)))
    # The gradient of the third update overflows in one number.
    module.model.final_proj.bias.register_hook(lambda grad: grad + (math.inf if next(calls) == 2 else 0) * (torch.arange(5) == 1))
    fit(module, steps, watch)
    assert [record.lr for record in records] == pytest.approx(SCHEDULES[schedule])
    assert [math.isfinite(record.grad_norm) for record in records] == [step != 2 for step in range(8)]
    assert all(rates == [record.lr] * len(rates) for rates, record in zip(watch.rates, records, strict=True)), "used = logged"
    assert module.skipped.count == 1
    decays = {name for name in before if decay == "all" or before[name].squeeze().ndim > 1}
    assert {"wavlm.encoder.layers.0.attention.gate_scale", "wavlm.feature_norm.weight"}.isdisjoint(decays) == (decay != "all")
    for name, weight in before.items():
        mean, first, second, count = weight, torch.zeros_like(weight), torch.zeros_like(weight), 0
        for step, rate in enumerate(SCHEDULES[schedule]):
            gradient = watch.gradients[step][name]
            if step != 2:
                count += 1
                weight = weight * (1 - rate * (0.2 if name in decays else 0))
                first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient.square()
                weight = weight - rate * (first / (1 - 0.8**count)) / ((second / (1 - 0.95**count)).sqrt() + 0.01)
            mean = mean + (1 - min(0.3, (1 + step) / (10 + step))) * (weight - mean)
            scale = float(weight.abs().max()) + 0.01
            assert float((watch.weights[step][f"model.{name}"] - weight).abs().max()) < 1e-5 * scale, (name, step)
            assert float((watch.weights[step][f"ema.{name}"] - mean).abs().max()) < 1e-5 * scale, (name, step)


def test_a_skipped_update_halves_the_scale_of_the_loss_and_is_counted_and_logged(caplog):
    records: list[StepRecord] = []
    module = training_module(model(), records=records, float16=True)
    module.model.final_proj.bias.register_hook(lambda grad: grad * math.nan)
    fit(module, [StepBatch(6, 0, [micro_batch(0, [3000])])])
    assert float(module.loss_scale.scale) == 64 and math.isnan(records[0].grad_norm) and module.skipped.count == 1
    assert "update 7 was skipped (gradient norm nan): all losses on this rank are finite" in caplog.text


@pytest.mark.parametrize(("classes", "place"), [((7,), 0), ((7, 4, 3), 0), ((7, 4, 3), 1), ((7, 4, 3), 2)])
def test_a_micro_batch_whose_loss_is_not_finite_is_named_whichever_label_set_it_comes_from(caplog, classes, place):
    module = training_module(model(classes), target_weights=(0.5, 0.25, 0.25)[: len(classes)])
    calls = iter(range(2 * len(classes)))
    module.model.heads()[place].final_proj.register_forward_hook(lambda *args: args[2] * (math.nan if next(calls) == 1 else 1))
    parts = [micro_batch(n, [5000], classes=classes, identity=MicroBatchId("speech", 2, 0, 5 + n)) for n in range(2)]
    fit(module, [StepBatch(0, 0, parts)])
    assert "the loss is not finite in speech epoch 2 stream 0 micro-batch 6" in caplog.text
    assert "micro-batch 5" not in caplog.text and module.skipped.count == 1


def test_the_losses_that_are_kept_for_naming_hold_no_graph(monkeypatch):
    module, kept = training_module(model()), []
    monkeypatch.setattr(module.skipped, "check", lambda step, norm, losses: kept.extend(losses))
    fit(module, [StepBatch(0, 0, [micro_batch(0, [3000])])])
    assert len(kept) == 1 and not kept[0][1].requires_grad


# --- what is drawn ------------------------------------------------------------------------------------------------------


def dropped_inputs(module: TrainingModule, micro_batches: list[PretrainBatch]) -> list[Tensor]:
    """Which of the encoder's inputs each micro-batch of a step drops."""
    patterns = []
    handle = module.model.wavlm.input_dropout.register_forward_hook(lambda _, args, out: patterns.append((out == 0).detach()))
    fit(module, [StepBatch(0, 0, micro_batches)])
    handle.remove()
    return patterns


NAMES = [
    MicroBatchId("speech", 0, 0, 0),
    MicroBatchId("speech", 0, 0, 1),
    MicroBatchId("speech", 0, 1, 0),
    MicroBatchId("speech", 1, 0, 0),
    MicroBatchId("other", 0, 0, 0),
]


def test_every_micro_batch_has_a_dropout_mask_of_its_own_that_its_name_and_the_seed_fix():
    parts = [micro_batch(0, [4000, 3000], identity=identity) for identity in NAMES]
    masks = dropped_inputs(training_module(model(input_dropout=0.5)), parts)
    for number, mask in enumerate(masks):
        assert 0.4 < float(mask.float().mean()) < 0.6
        assert not any(torch.equal(mask, other) for other in masks[:number]), NAMES[number]
    again = dropped_inputs(training_module(model(input_dropout=0.5, seed=6)), parts[::-1])[::-1]
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True)), "neither order nor weights matter"
    other = dropped_inputs(training_module(model(input_dropout=0.5), seed=4), parts)
    assert not any(torch.equal(a, b) for a, b in zip(masks, other, strict=True))


def test_the_generator_is_seeded_by_each_part_of_the_name_and_by_the_seed():
    drawn = {}
    for seed in (0, 1):
        for identity in NAMES:
            seed_dropout(torch.device("cpu"), seed, micro_batch(0, [400], identity=identity))
            drawn[seed, identity] = float(torch.rand(1, dtype=torch.float64))
    assert len(set(drawn.values())) == 10
    seed_dropout(torch.device("cpu"), 1, micro_batch(5, [800], identity=NAMES[2]))
    assert float(torch.rand(1, dtype=torch.float64)) == drawn[1, NAMES[2]]


# --- waveforms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [False, True])
def test_waveforms_are_mixed_and_then_normalised(normalised):
    for micro in three_micro_batches():
        found = prepare_waveforms(micro, Mixing(), normalised=normalised)
        expected = prepared(micro, normalised=normalised)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
        clean = prepare_waveforms(micro, None, normalised=normalised)
        without = prepared(replace(micro, mix=MixRecord.empty()), normalised=normalised)
        torch.testing.assert_close(clean.double(), without, rtol=0, atol=2e-6 * float(without.abs().max()))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_unispeech_mode_normalises_every_row_before_mixing_and_mixed_rows_once_more_if_the_model_wants_it(normalised):
    micro = replace(micro_batch(0, [4000, 2900]), mix=mixtures((0, 1, 900, 100, 1800, 3)))
    found = prepare_waveforms(micro, Mixing(mode="unispeech"), normalised=normalised)
    alone = prepared(replace(micro, mix=MixRecord.empty()), normalised=normalised)
    assert float((found[1].double() - alone[1]).abs().max()) < 1e-5 * float(alone[1].abs().max())
    power, of_partner = alone[0].square().mean(), alone[1].square().mean()  # over the padded width in this mode
    mixed = alone[0].clone()
    mixed[900:2700] += (power / (of_partner * 10**0.3)).sqrt() * alone[1, 100:1900]
    if normalised:
        mixed = (mixed - mixed.mean()) / (mixed.var(unbiased=False) + 1e-5).sqrt()
    assert float((found[0].double() - mixed).abs().max()) < 1e-5 * float(mixed.abs().max())


def test_the_mode_of_mixing_reaches_the_step():
    micro = replace(micro_batch(0, [4000, 2900]), mix=mixtures((0, 1, 900, 100, 1800, 3)))
    seen = []
    for mode in ("paper", "unispeech"):
        module = training_module(model(normalise_waveform=True), mixing=Mixing(mode=mode))
        module.model.wavlm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
        fit(module, [StepBatch(0, 0, [micro])])
        torch.testing.assert_close(seen[-1], prepare_waveforms(micro, Mixing(mode=mode), normalised=True), rtol=0, atol=0)
    assert not torch.allclose(*seen, atol=1e-3)


# --- figures of the health rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("special_rows", "classes"), [(0, (7,)), (4, (7,)), (0, (7, 4))])
def test_predictions_channels_and_gradients_of_a_measured_step_are_sums_over_its_micro_batches(special_rows, classes):
    records: list[StepRecord] = []
    learner, shares = model(classes, special_rows=special_rows), (1 / len(classes),) * len(classes)
    health = HealthFigures(4, num_classes=7, channels=8)
    module = training_module(
        learner,
        loss=WARM,
        records=records,
        health=health,
        optim=Optim(updates=20, warmup_updates=0, clip_norm=0.1),
        target_weights=shares,
    )
    micro_batches = [*three_micro_batches(classes), micro_batch(3, [5000, 4000], classes=classes, weight=0.0)]
    masked = sum(len(micro.masked_index) for micro in micro_batches[:3])
    expected = Explicit(module, micro_batches, 3, masked, shares)
    fit(module, [StepBatch(3, 0, micro_batches), StepBatch(4, 0, micro_batches)])
    found, unmeasured = records[0].health, records[1].health
    assert found is not None and unmeasured is None
    np.testing.assert_allclose(found.marginal, expected.marginal.numpy(), rtol=2e-5)
    if not special_rows:
        assert found.marginal.sum() == pytest.approx(masked, rel=1e-5)
    else:
        assert found.marginal.sum() < masked - 1e-3 * masked, "special rows take their part of the probability"
    np.testing.assert_allclose(found.activations, expected.activations.numpy(), rtol=1e-5)
    squares: dict[str, float] = {}
    for name, gradient in expected.gradients.items():
        part = name.removeprefix("model.").removeprefix("wavlm.").split(".")
        if part[0] == "logmel_map":
            continue
        heads = dict.fromkeys(("final_proj", "label_embeddings", "other_heads"), "head")
        block = {"extractor": "extractor", "encoder": "positions", **heads}.get(part[0], "projection")
        if part[:2] == ["encoder", "layers"]:
            block = f"layer_0{int(part[2]) + 1}"
        squares[block] = squares.get(block, 0.0) + float(gradient.square().sum())
    assert found.gradients.keys() == squares.keys()
    for block, square in squares.items():
        assert found.gradients[block] == pytest.approx(math.sqrt(square), rel=1e-4), block


def test_a_rank_counts_whole_gradients_only_where_it_is_the_first():
    module = training_module(model(), loss=WARM)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    counted, not_counted = block_gradients(module, count=True), block_gradients(module, count=False)
    assert list(counted) == list(not_counted) and not any(float(square) for square in not_counted.values())
    sizes = {"head": 16 * 5 + 5 + 7 * 5, "projection": 8 + 8 + 8 * 16 + 16 + 16}
    for block, size in sizes.items():
        assert float(counted[block]) == pytest.approx(4.0 * size, rel=1e-6)
    for rank in (0, 1):
        figures = HealthFigures(1, num_classes=7, channels=8, rank=rank)
        assert figures.begin(0)
        figures.gradients(module)
        measured = figures.end()  # a rank that ran padding alone has no predictions
        assert not measured[:15].any() and bool(measured[15:].any()) == (rank == 0) and len(measured) == 15 + len(counted)


# --- counters -----------------------------------------------------------------------------------------------------------


def test_unreadable_rows_and_skipped_updates_are_counted_on_through_a_save_and_a_resume(tmp_path):
    def make() -> TrainingModule:
        optim = Optim(updates=20, warmup_updates=0, max_skip_rate=0.5)
        module = training_module(model(), optim=optim, max_skip_rate=0.05, health_state=lambda: {"window": 3})
        module.fingerprints, module.plan_state, module.validation = {"speech": "abc"}, lambda step: {"at": step}, 2.5
        module.records = lambda: {"launch": 1, "tables": {}}
        module.model.final_proj.bias.register_hook(lambda grad: grad * math.inf)
        return module

    steps = [StepBatch(step, 0, [micro_batch(step, [3000, 0, 2000])]) for step in range(6)]
    module = make()
    fit(module, steps[:4]).save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["openwavlm"]
    assert saved == {
        "format_version": 1,
        "step": 4,
        "fingerprints": {"speech": "abc"},
        "plan": {"at": 4},
        "rows": 12,
        "unreadable": 4,
        "health": {"window": 3},
        "voids": 4,
        "records": {"launch": 1, "tables": {}},
        "validation": 2.5,
    }
    resumed = make()
    fit(resumed, steps[4:5], ckpt_path=str(tmp_path / "a.ckpt"), done=4)
    assert (resumed._rows, resumed._unreadable, resumed.skipped.count) == (15, 5, 5)
    with pytest.raises(ValueError, match=r"6 of 18 rows could not be read, more than data.max_skip_rate=0.05 allows"):
        fit(make(), steps[4:6], ckpt_path=str(tmp_path / "a.ckpt"), done=4)


def test_rows_may_be_unreadable_at_the_configured_rate_and_no_more():
    module = training_module(model(), max_skip_rate=0.1)
    module._check_unreadable({"rows": 100.0, "unreadable": 0.0})
    module._check_unreadable({"rows": 100.0, "unreadable": 20.0})
    with pytest.raises(ValueError, match="21 of 201 rows"):
        module._check_unreadable({"rows": 1.0, "unreadable": 1.0})
    few = training_module(model(), max_skip_rate=0.0)
    few._check_unreadable({"rows": 5.0, "unreadable": 5.0})
    with pytest.raises(ValueError, match="6 of 6 rows"):
        few._check_unreadable({"rows": 1.0, "unreadable": 1.0})
