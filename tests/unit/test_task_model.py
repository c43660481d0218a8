"""Model, loss and learning rates of fine-tuning, beside their formulas."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import MicroBatchId
from openwavlm.downstream.batch import TaskBatch
from openwavlm.downstream.collapse import COLLAPSED_CHECKS, check_collapse
from openwavlm.downstream.encoders import SpectralEncoder
from openwavlm.downstream.model import ClassHead, CtcHead, LowRank, TaskModel, choose_trained, merge_adapters
from openwavlm.downstream.objective import SUMS, TaskObjective, run_model, task_loss
from openwavlm.downstream.optim import TaskOptim
from openwavlm.downstream.settings import Trained
from openwavlm.evaluation.features import LogMelFeatures, MfccFeatures
from openwavlm.model.front_ends import ConvExtractor
from openwavlm.model.wavlm import WavLM
from openwavlm.training.control import Control
from openwavlm.training.module import TrainingModule
from openwavlm.training.optim import Optim
from random_models import TINY, TINY_LARGE, randomise

LENGTHS = [9000, 4000, 6321]


def encoder(config=TINY, **changes: Any) -> WavLM:
    torch.manual_seed(0)
    made = randomise(WavLM(replace(config, **changes)))
    assert isinstance(made.extractor, ConvExtractor)
    made.extractor.ignores_padding = True
    return made


def ctc_model(config=TINY, *, weighted: bool = False, **changes: Any) -> TaskModel:
    model = TaskModel(encoder(config, **changes), CtcHead(64, 7, dropout=0.0), weighted=weighted)
    if weighted:
        nn.init.normal_(model.layer_weights)
    return model.eval()


def batch(targets: list[list[int]], lengths: list[int] = LENGTHS, **values: Any) -> TaskBatch:
    generator = torch.Generator().manual_seed(4)
    waveforms = torch.randint(-9000, 9000, (len(lengths), max(lengths)), generator=generator)
    waveforms *= torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    frames = int(num_frames(max(lengths)))
    padded = torch.full((len(targets), max(map(len, targets))), -1)
    for row, numbers in enumerate(targets):
        padded[row, : len(numbers)] = torch.tensor(numbers)
    return TaskBatch(
        waveforms=waveforms.to(torch.int16),
        num_samples=torch.tensor(lengths),
        targets=padded,
        target_lengths=torch.tensor([len(numbers) if size else 0 for numbers, size in zip(targets, lengths, strict=True)]),
        frame_counts=tuple(max(0, int(num_frames(size))) for size in lengths),
        token_counts=tuple(len(numbers) if size else 0 for numbers, size in zip(targets, lengths, strict=True)),
        mask=torch.zeros(len(lengths), frames, dtype=torch.bool),
        channel_mask=torch.zeros(len(lengths), 64, dtype=torch.bool),
        layer_keep=torch.ones(3, dtype=torch.bool),
        rows=torch.arange(len(lengths)),
        id=MicroBatchId("speech", 0, 0, 0),
        num_unreadable=lengths.count(0),
        valid_samples=sum(lengths),
        num_tokens=sum(len(numbers) for numbers, size in zip(targets, lengths, strict=True) if size),
        **values,
    )


# --- encoder and head ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["group norm", "layer norm"])
def test_a_padded_row_has_the_logits_of_the_row_alone(config):
    model, micro = ctc_model(config, weighted=True), batch([[4], [5], [6]])
    together = run_model(model, micro, training=False)
    for row, length in enumerate(LENGTHS):
        alone = batch([[4]], [length])
        alone = replace(alone, waveforms=micro.waveforms[row : row + 1, :length])
        expected = run_model(model, alone, training=False).logits[0]
        frames = int(together.frames[row])
        assert frames == len(expected) == 1 + (length - 400) // 320
        error = (together.logits[row, :frames] - expected).abs().max() / expected.std()
        assert float(error) < 1e-4
    if config is TINY:  # and by the references' rule it has not
        model.wavlm.extractor.ignores_padding = False
        padded = run_model(model, micro, training=False).logits[1, : int(together.frames[1])]
        assert float((padded - together.logits[1, : len(padded)]).abs().max() / padded.std()) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["post-norm", "pre-norm"])
def test_the_head_reads_the_softmax_of_the_weights_over_all_layers_or_the_last_one(config):
    waveforms, num_samples = torch.randn(2, 5000) / 9, torch.tensor([5000, 5000])
    model = ctc_model(config, weighted=True)
    states = model.wavlm(waveforms, num_samples)
    layers = states.hidden_states
    weights = [math.exp(float(weight)) for weight in model.layer_weights]
    mixed = sum(weight / sum(weights) * layer for weight, layer in zip(weights, layers, strict=True))
    expected = mixed @ model.head.lm_head.weight.T + model.head.lm_head.bias
    torch.testing.assert_close(model(waveforms, num_samples).logits, expected, rtol=1e-4, atol=1e-5)
    model.layer_weights = None
    expected = states.final @ model.head.lm_head.weight.T + model.head.lm_head.bias
    torch.testing.assert_close(model(waveforms, num_samples).logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_classes_are_read_from_the_mean_over_valid_frames():
    head, states = ClassHead(6, 4, 3), torch.randn(2, 5, 6)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    found = head(states, padding)
    for row, frames in enumerate((5, 2)):
        pooled = (states[row, :frames] @ head.projector.weight.T + head.projector.bias).mean(0)
        torch.testing.assert_close(found[row], pooled @ head.classifier.weight.T + head.classifier.bias)


@torch.no_grad()
def test_a_channel_mask_silences_channels_of_the_encoders_input():
    model = encoder()
    channels = torch.zeros(1, 64, dtype=torch.bool)
    channels[0, 3:9] = True
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    waveforms = torch.randn(1, 4000)
    model(waveforms)
    model(waveforms, channel_mask=channels)
    assert not seen[1][..., 3:9].any() and torch.equal(seen[1][..., 9:], seen[0][..., 9:]) and seen[0][..., 3:9].any()


@pytest.mark.parametrize(("kind", "features"), [("mfcc", MfccFeatures(normalised=True)), ("log_mel", LogMelFeatures())])
def test_a_control_reads_normalised_spectra_with_context_of_each_row_alone(kind, features):
    control, micro = SpectralEncoder(kind), batch([[4], [5], [6]])
    found = control(micro.waveforms / 32768, micro.num_samples)
    for row, length in enumerate(LENGTHS):
        expected = features(micro.waveforms[row : row + 1, :length].numpy(), [1])[0][0]
        torch.testing.assert_close(found.final[row, : len(expected)], expected)
        assert not found.final[row, len(expected) :].any() and int(found.padding_mask[row].sum()) == found.final.shape[1] - len(
            expected
        )
    assert control.config.dim == features.dims[1] and not list(control.parameters())


# --- what is trained ----------------------------------------------------------------------------------------------------


def trained_names(trained: Trained) -> set[str]:
    model = ctc_model(feature_grad_mult=1.0)
    choose_trained(model.wavlm, trained)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_encoder_is_trained_as_far_as_the_config_says():
    head = {"head.lm_head.weight", "head.lm_head.bias"}
    assert trained_names(Trained(encoder="frozen")) == head
    top = trained_names(Trained(encoder="top", top_layers=2)) - head
    assert top and all(name.startswith(("wavlm.encoder.layers.1.", "wavlm.encoder.layers.2.")) for name in top)
    full = trained_names(Trained(encoder="full"))
    assert {"wavlm.mask_embedding", "wavlm.projection.weight"} <= full and not any("extractor" in name for name in full)
    assert any("extractor" in name for name in trained_names(Trained(encoder="full", extractor=True)))
    adapters = trained_names(Trained(encoder="lora")) - head
    assert len(adapters) == 3 * 4 * 2 and all(name.endswith((".down", ".up")) for name in adapters)
    with pytest.raises(ValueError, match="at most the encoder's 3 layers, but is 4"):
        trained_names(Trained(encoder="top", top_layers=4))


@torch.no_grad()
def test_adapters_begin_without_effect_and_are_merged_exactly():
    plain, adapted = encoder(), encoder()
    choose_trained(adapted, Trained(encoder="lora", lora_rank=2))
    waveforms = torch.randn(1, 4000) / 9
    assert torch.equal(plain(waveforms).final, adapted(waveforms).final)
    for module in adapted.modules():
        if isinstance(module, LowRank):
            module.up.normal_(0, 0.1)
    moved = adapted(waveforms).final
    query = adapted.encoder.layers[0].attention.query
    lowrank = query.parametrizations.weight[0]
    expected = plain.encoder.layers[0].attention.query.weight + lowrank.up @ lowrank.down
    assert float((moved - plain(waveforms).final).abs().max()) > 1e-3
    merge_adapters(adapted)
    torch.testing.assert_close(adapted.encoder.layers[0].attention.query.weight, expected)
    assert adapted.state_dict().keys() == plain.state_dict().keys() and torch.equal(adapted(waveforms).final, moved)


def test_rates_fall_from_layer_to_layer_and_the_head_has_its_own():
    trained = Trained(layer_decay=0.5, head_lr=10.0, freeze_updates=7)
    optim = TaskOptim.of(Optim(updates=20, lr=1e-3, warmup_updates=0, weight_decay=0.1), trained, layers=3)
    model = ctc_model(weighted=True, feature_grad_mult=0.0)
    choose_trained(model.wavlm, trained)
    module = SimpleNamespace(named_parameters=lambda: ((f"model.{name}", value) for name, value in model.named_parameters()))
    adam = optim.optimizer(module)
    groups = optim.groups(module)
    assert [len(group) for group in groups] == [len(group["params"]) for group in adam.param_groups]
    scales = {}
    for named, group in zip(groups, adam.param_groups, strict=True):
        for name, parameter in named.items():
            scales[name] = group["scale"]
            assert any(parameter is one for one in group["params"])
            assert group["weight_decay"] == (0.1 if parameter.squeeze().ndim > 1 else 0.0)
            assert group["held"] == (7 if "wavlm" in name else 0)
    assert scales["model.head.lm_head.weight"] == scales["model.layer_weights"] == 10.0
    assert [scales[f"model.wavlm.encoder.layers.{layer}.attention.query.weight"] for layer in range(3)] == [0.25, 0.5, 1.0]
    assert scales["model.wavlm.projection.weight"] == scales["model.wavlm.encoder.positional.conv.bias"] == 0.125
    assert not any("extractor" in name for name in scales)


def test_an_update_multiplies_the_rate_by_each_groups_factor_and_holds_what_is_held():
    model = nn.Linear(2, 3)
    module = TrainingModule(
        model,
        Optim(updates=20, lr=0.5, warmup_updates=0, final_share=1.0, clip_norm=1e9),
        TaskObjective(ctc=True, seed=0),
        control=Control(),
        on_record=lambda record: None,
        fingerprints={},
        plan_state=dict,
    )
    stepped: list[bool] = []
    groups = [{"params": [model.weight], "scale": 0.25, "held": 4}, {"params": [model.bias], "scale": 10.0, "held": 0}]
    optimizer = SimpleNamespace(param_groups=groups, optimizer=SimpleNamespace(), step=lambda: stepped.append(True))
    for step, held in ((3, True), (4, False)):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        norm = module.update_weights(optimizer, step)
        assert [group["lr"] for group in groups] == [0.125, 5.0]
        assert (model.weight.grad is None) == held
        assert float(norm) == pytest.approx(2.0 * math.sqrt(3 if held else 9))
    assert stepped == [True, True]


def test_the_tri_stage_schedule_rises_stays_and_falls_exponentially():
    optim = Optim(updates=100, lr=2.0, warmup_updates=10, schedule="tri_stage", decay_share=0.5, final_share=0.05)
    rates = [optim.learning_rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)]) and rates[10:51] == [2.0] * 41
    assert rates[50:] == pytest.approx([2.0 * 0.05 ** (step / 50) for step in range(51)])
    with pytest.raises(ValueError, match="final_share must be above 0 for tri_stage"):
        Optim(updates=100, warmup_updates=0, schedule="tri_stage")


# --- the loss -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_ctc_loss_is_the_sum_over_readable_rows_and_a_row_without_a_path_has_none():
    model = ctc_model()
    micro = batch([[4, 4, 5], [6], [1, 2, 3, 4, 5, 6] * 3, [5, 5]], [9000, 4000, 4000, 0])
    output = run_model(model, micro, training=False)
    log_probs = output.logits.detach().double().log_softmax(-1)

    def forward_probability(row: int) -> float:
        labels = [0]
        for number in micro.targets[row, : int(micro.target_lengths[row])].tolist():
            labels += [number, 0]
        alpha = [0.0] * len(labels)
        for frame in range(int(output.frames[row])):
            before, alpha = alpha, [0.0] * len(labels)
            for place, number in enumerate(labels):
                if frame == 0:
                    reached = 1.0 if place < 2 else 0.0
                else:
                    reached = before[place] + (before[place - 1] if place else 0.0)
                    if place > 1 and number and number != labels[place - 2]:
                        reached += before[place - 2]
                alpha[place] = reached * math.exp(float(log_probs[row, frame, number]))
        return alpha[-1] + alpha[-2]

    expected = sum(-math.log(forward_probability(row)) for row in (0, 1))
    assert forward_probability(2) == 0.0
    loss = task_loss(output, micro, ctc=True)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # The counts on the host are the tensors', which give the same bits.
    assert list(micro.frame_counts) == output.frames.clamp(min=0).tolist()
    assert list(micro.token_counts) == micro.target_lengths.tolist()
    frames, named = output.frames.clamp(min=1), {"reduction": "none", "zero_infinity": True}
    log_probs = output.logits.log_softmax(-1).transpose(0, 1)
    rows = nn.functional.ctc_loss(log_probs, micro.targets.clamp(min=1), frames, micro.target_lengths, **named)
    assert torch.equal(loss, torch.where(micro.target_lengths > 0, rows, 0).sum())


@torch.no_grad()
def test_the_classification_loss_leaves_unreadable_rows_out():
    model = TaskModel(encoder(), ClassHead(64, 8, 3), weighted=True)
    micro = batch([[2], [0], [1]], [9000, 4000, 0])
    output = run_model(model, micro, training=False)
    log_probs = output.logits.detach().double().log_softmax(-1)
    expected = -float(log_probs[0, 2] + log_probs[1, 0])
    assert float(task_loss(output, micro, ctc=False)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ctc", [True, False])
def test_the_figures_of_a_micro_batch_are_its_counts(ctc):
    head = CtcHead(64, 7, dropout=0.0) if ctc else ClassHead(64, 8, 7)
    model = TaskModel(encoder(), head, weighted=not ctc)
    micro = replace(batch([[4, 5, 6], [6], [2]], [9000, 4000, 0]), mask=torch.rand(3, 27) < 0.5)
    objective = TaskObjective(ctc=ctc, seed=1)
    outcome = objective.outcome(model, micro, 0, measured=True)
    figures = objective.layout.named(outcome.sums)
    assert list(figures) == list(SUMS)
    frames = [27, 12, 0]
    assert figures["units"] == (4 if ctc else 2) == objective.units(micro)
    assert (figures["rows"], figures["unreadable"], figures["samples"], figures["padded_samples"]) == (3, 1, 13_000, 27_000)
    assert figures["valid_frames"] == sum(frames) and figures["mask_frames"] == int(micro.mask.sum())
    assert float(outcome.marginal.sum()) == pytest.approx(sum(frames) if ctc else 3, rel=1e-5)
    assert figures["loss"] == pytest.approx(float(outcome.loss.detach()), rel=1e-6)
    idle = replace(micro, weight=0.0)
    assert objective.units(idle) == 0 and objective.outcome(model, idle, 0, measured=False).sums is None


def test_a_frozen_start_gives_the_encoder_no_gradient_and_several_processes_ignore_it_in_the_update():
    model, micro = ctc_model(feature_grad_mult=0.0), batch([[4], [5], [6]])
    model.train()
    alone, joined = (
        TaskObjective(ctc=True, seed=1, freeze_updates=3),
        TaskObjective(ctc=True, seed=1, freeze_updates=3, joined=True),
    )
    losses = []
    for objective, step, reaches in ((alone, 2, False), (alone, 3, True), (joined, 2, True)):
        model.zero_grad(set_to_none=True)
        loss = objective.outcome(model, micro, step, measured=False).loss
        loss.backward()
        losses.append(float(loss.detach()))
        assert (model.wavlm.projection.weight.grad is not None) == reaches and model.head.lm_head.weight.grad is not None
    assert losses[0] == losses[1] == losses[2]


def test_a_frozen_encoder_stays_in_eval_mode():
    model = TaskModel(encoder(dropout=0.5), CtcHead(64, 7, dropout=0.5), weighted=True, evaluates=True).train()
    assert not model.wavlm.training and not model.wavlm.encoder.dropout.training and model.head.dropout.training


def test_predictions_of_one_symbol_stop_the_run_at_the_third_check_in_a_row():
    for shares in ([0.995], [0.995, 0.999], [1.0, 1.0, 0.5, 1.0, 1.0], [0.99] * 5):
        check_collapse(shares, "'<pad>'")
    with pytest.raises(ValueError, match=r"'<pad>' is 99.6 % of them at 3 validations in a row: lower optim.lr"):
        check_collapse([0.1, 1.0, 0.995, 0.996], "'<pad>'")
    assert COLLAPSED_CHECKS == 3
