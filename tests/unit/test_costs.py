"""Parameters, operations and memory that are counted without data are those of real models and steps."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from openwavlm.audio.frames import num_samples_of
from openwavlm.audio.spectra import log_mel
from openwavlm.model import attention
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.costs import Costs, MicroBatchShape, build_without_data, count_costs, count_parameters
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.planning.memory import estimate_memory
from openwavlm.runs.compose import plain
from openwavlm.training.config import RunConfig
from runs import compose

MODELS = ("nano", "nano_mel", "small", "base", "base_plus", "large")
HEAD, CLASSES = Head(final_dim=32), (20,)
SMALL = WavLMConfig(
    conv_dims=(8, 16, 16, 16, 16, 16, 16), dim=24, ffn_dim=40, heads=3, layers=2, positional_kernel=8, positional_groups=2,
    num_buckets=32, max_distance=80, attention_backend="eager", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    input_dropout=0.0,
)  # fmt: skip


def config_of(model: str, **changes: object) -> WavLMConfig:
    places = ["name=x", "data.sources.speech.shards=a", "data.sources.speech.labels=b"]
    parts = RunConfig.of(plain(compose([*places, f"model={model}"])))
    return dataclasses.replace(parts.model, **changes)


def built(config: WavLMConfig) -> WavLMForPretraining:
    return WavLMForPretraining(WavLM(config), Head(final_dim=32), num_classes=CLASSES)


def shape_of(rows: int, frames: int, predicted: int | None = None) -> MicroBatchShape:
    predicted = (rows * frames + 1) // 2 if predicted is None else predicted
    return MicroBatchShape(rows=rows, samples=num_samples_of(frames), predicted_frames=predicted)


def step(model: WavLMForPretraining, rows: int, frames: int, waveforms: Tensor | None = None) -> tuple[PretrainingOutput, Tensor]:
    """A forward pass over `rows` of `frames` frames, of which every second is predicted, and its loss."""
    samples, positions = num_samples_of(frames), rows * frames
    mask = torch.arange(positions) % 2 == 0
    index = torch.arange(0, positions, 2)
    output = model(
        torch.randn(rows, samples) if waveforms is None else waveforms,
        torch.full((rows,), samples),
        mask.view(rows, frames),
        index,
        [index % size for size in CLASSES],
        torch.ones(model.wavlm.config.layers, dtype=torch.bool),
    )
    return output, output.sets[0].cross_entropy_sum + output.feature_penalty


def costs_of(config: WavLMConfig, shape: MicroBatchShape, classes: tuple[int, ...] = CLASSES, **settings: str) -> Costs:
    return count_costs(config, HEAD, classes, shape, **{"precision": "32-true", "device": "cpu", **settings})  # type: ignore[arg-type]


def memory_of(config: WavLMConfig, shape: MicroBatchShape, *, device: str = "cuda", **settings):
    settings = {"precision": "32-true", **settings}
    costs = costs_of(config, shape, precision=settings["precision"], device=device)
    parameters = sum(count_parameters(build_without_data(config, HEAD, CLASSES)).values())
    return estimate_memory(config, parameters, costs, shape, **settings)


# --- parameters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_parameters_of_the_parts_are_those_of_the_model(model):
    with torch.device("meta"):
        made = built(config_of(model))
    counted = count_parameters(build_without_data(made.wavlm.config, HEAD, CLASSES))
    assert sum(counted.values()) == sum(p.numel() for p in made.parameters())
    assert counted["layers"] == sum(p.numel() for p in made.wavlm.encoder.layers.parameters())
    assert counted["extractor"] == sum(p.numel() for p in made.wavlm.extractor.parameters())
    assert counted["head"] == (made.wavlm.config.dim + 1) * 32 + 20 * 32


def test_special_rows_and_further_label_sets_have_parameters_of_their_own():
    head = Head(final_dim=32, special_rows=4)
    counted = count_parameters(build_without_data(SMALL, head, (10, 20)))
    assert counted["head"] == 2 * (24 + 1) * 32 + (10 + 4 + 20 + 4) * 32


# --- operations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "rows", "frames"),
    [
        ("nano", {}, 3, 99),
        ("nano", {"attention_backend": "sdpa"}, 2, 150),
        ("nano", {"feature_grad_mult": 0.0}, 2, 60),
        ("nano_mel", {}, 2, 99),
        ("nano", {"recompute": "extractor"}, 2, 99),
        ("nano", {"recompute": "all"}, 2, 99),
        ("small", {"layers": 3}, 2, 120),
        ("base", {"layers": 2}, 2, 60),
        ("large", {"layers": 1}, 1, 90),
    ],
)
def test_the_operations_of_a_step_are_those_that_torch_counts(name, changes, rows, frames):
    config = config_of(name, **changes)
    with FlopCounterMode(display=False) as counter:
        _, loss = step(built(config).train(), rows, frames)
        seen_forward = counter.get_total_flops()
        loss.backward()
    ours = costs_of(config, shape_of(rows, frames))
    assert sum(ours.forward.values()) == seen_forward
    # torch counts the weight gradient of a convolution with groups as if it had none.
    surplus = ours.forward["positional"] * (config.positional_groups - 1)
    seen_backward = counter.get_total_flops() - seen_forward - surplus
    assert sum(ours.backward.values()) + ours.recomputed == pytest.approx(seen_backward, rel=2e-3)
    assert ours.operations == sum(ours.forward.values()) + sum(ours.backward.values()) + ours.recomputed


def operations_by_hand(config: WavLMConfig, rows: int, frames: int, predicted: int, classes: tuple[int, ...]) -> dict[str, int]:
    """Two operations a multiply-add of the products of `config`, whose widths are those of `SMALL`."""
    channels, length, extractor = 1, 320 * (frames - 1) + 400, 0
    for kernel, stride, width in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), (8, *[16] * 6), strict=True):
        length = (length - kernel) // stride + 1
        extractor += 2 * rows * length * (kernel * channels) * width
        channels = width
    positions = rows * frames
    surplus = 1 if config.positional_kernel % 2 == 0 else 0
    run = 2 * (1 - config.layer_drop) if config.layer_drop_mode == "skip" else 2
    return {
        "extractor": extractor,
        "projection": 2 * positions * 16 * 24,
        "positional": 2 * rows * (frames + surplus) * config.positional_kernel * 24 * (24 // 2),
        "attention": round(run * positions * 2 * (4 * 24 * 24 + 3 * 2 * 8)),  # four maps; of 3 heads two gates of 8 channels
        "scores": round(run * rows * 3 * 2 * 2 * frames * frames * 8),
        "feed_forward": round(run * positions * 2 * 2 * 24 * 40),
        "head": 2 * predicted * (len(classes) * 24 * 32 + sum(classes) * 32),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positional_kernel": 7},
        {"layer_drop": 0.25},
        {"layer_drop": 0.25, "layer_drop_mode": "skip"},
        {"pre_norm": True, "extractor_norm": "layer"},
        {"pre_norm": True, "extractor_norm": "layer", "dropout": 0.1},
        {"dropout": 0.1},
        {"feature_grad_mult": 0.0},
        {"feature_grad_mult": 1.0},
        {"attention_backend": "sdpa"},
        {"attention_backend": "flex"},
    ],
)
def test_forward_backward_and_recomputed_operations_are_those_of_the_products_in_every_backend(changes):
    config, classes = dataclasses.replace(SMALL, **changes), (20, 7)
    expected = operations_by_hand(config, 3, 50, 70, classes)
    first = 2 * 3 * ((num_samples_of(50) - 10) // 5 + 1) * 10 * 8
    frozen = config.feature_grad_mult == 0
    backward = {part: 2 * count for part, count in expected.items()}
    backward["extractor"] = 0 if frozen else 2 * expected["extractor"] - first  # the waveform has no gradient
    layers = expected["attention"] + expected["scores"] + expected["feed_forward"]
    # Pre-norm without dropout: the last product of a layer is an output that nothing in the backward reads.
    unread = expected["feed_forward"] // 2 if config.pre_norm and not config.dropout else 0
    extractor = 0 if frozen else expected["extractor"]
    for recompute, again in (("none", 0), ("extractor", extractor), ("all", extractor + layers - unread)):
        for settings in ({"device": "cuda"}, {"device": "cpu", "precision": "bf16-mixed"}):
            ours = costs_of(dataclasses.replace(config, recompute=recompute), shape_of(3, 50, 70), classes, **settings)
            assert (ours.forward, ours.backward, ours.recomputed) == (expected, backward, again)


def test_log_mels_are_products_with_the_bands_and_with_the_linear_map_whose_weights_alone_have_a_gradient():
    both, linear = 2 * 150 * (257 * 40 + 40 * 16), 2 * 150 * 40 * 16
    for mult, backward, again in ((1.0, linear, both), (0.0, 0, 0)):
        config = dataclasses.replace(SMALL, front_end="logmel", feature_grad_mult=mult, recompute="extractor")
        ours = costs_of(config, shape_of(3, 50, 40))
        assert (ours.forward["extractor"], ours.backward["extractor"], ours.recomputed) == (both, backward, again)


# --- memory -------------------------------------------------------------------------------------------------------------


def saved_bytes(model: WavLMForPretraining, rows: int, frames: int, precision: str) -> int:
    """Unique storages that autograd keeps of a step, without parameters, their 16-bit copies and the waveforms."""
    waveforms = torch.randn(rows, num_samples_of(frames))
    excluded = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), waveforms)}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            storages[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32-true"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        kept = step(model.train(), rows, frames, waveforms)
    assert kept[1].isfinite()
    config = model.wavlm.config
    seen = sum(storage.nbytes() for storage in storages.values())
    if precision == "32-true":
        return seen
    maps = [
        module
        for name, module in model.named_modules()
        # The gate's weights are summed and the positional kernel is normed before they are cast; what is recomputed is not kept.
        if isinstance(module, nn.Linear | nn.Conv1d)
        and "gate" not in name
        and "positional" not in name
        and not (config.recompute != "none" and "extractor" in name)
        and not (config.recompute == "all" and "encoder.layers" in name)
    ]
    return seen - 2 * sum(module.weight.numel() for module in maps if module.weight.requires_grad)


DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "input_dropout": 0.1}
NO_DROPOUT = dict.fromkeys(DROPOUT, 0.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("name", "changes", "rows", "frames"),
    [
        ("nano", {}, 4, 99),
        ("nano", DROPOUT, 2, 300),
        ("nano", {"pre_norm": False, "attention_backend": "sdpa", **DROPOUT}, 2, 300),
        ("nano", {"feature_grad_mult": 0.0}, 4, 99),
        ("nano_mel", {}, 4, 150),
        ("small", {"layers": 3, **NO_DROPOUT}, 2, 200),
        ("small", {"layers": 3, "attention_backend": "eager"}, 2, 200),
        ("large", {"layers": 1, "dim": 256, "ffn_dim": 1024, "heads": 4}, 2, 100),
    ],
)
def test_the_activations_of_a_step_are_those_that_autograd_keeps(name, changes, rows, frames, precision):
    config = config_of(name, **changes)
    seen = saved_bytes(built(config), rows, frames, precision)
    ours = costs_of(config, shape_of(rows, frames), precision=precision)
    assert sum(ours.kept.values()) == pytest.approx(seen, rel=1e-3), ours.kept


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recompute", ["extractor", "all"])
def test_what_is_computed_again_is_not_kept(recompute, precision):
    config = config_of("small", layers=3, recompute=recompute)
    counted, plain_costs = (
        costs_of(dataclasses.replace(config, recompute=each), shape_of(2, 200), precision=precision)
        for each in (recompute, "none")
    )
    assert (counted.kept, counted.largest) == (plain_costs.kept, plain_costs.largest), (
        "what is recomputed is counted all the same"
    )
    seen = saved_bytes(built(config), 2, 200, precision)
    kept = dict(memory_of(config, shape_of(2, 200), device="cpu", precision=precision).kept)
    assert "extractor" not in kept and kept.pop("waveforms") == 6 * 2 * num_samples_of(200)
    assert sum(kept.values()) == pytest.approx(seen, rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("name", "changes", "rows", "frames"),
    [
        ("nano", {}, 4, 200),
        pytest.param("small", {"layers": 2, **NO_DROPOUT, "attention_backend": "eager"}, 2, 150, marks=pytest.mark.long),
    ],
)
def test_the_peak_of_a_step_of_two_micro_batches_is_the_estimate(name, changes, rows, frames, precision):
    config = config_of(name, **changes)
    model = built(config)
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for number in range(4):  # the second step: now there are moments
            tracker.reset_mod_stats()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32-true"):
                output, loss = step(model, rows, frames)
            loss.backward()
            del output, loss
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    ((seen),) = [figures["Total"] for figures in tracker.get_tracker_snapshot("peak").values()]
    ours = memory_of(config, shape_of(rows, frames), device="cpu", precision=precision)
    assert ours.total == pytest.approx(seen, rel=0.25), (ours, seen)


def test_the_bias_costs_frames_squared_in_all_backends_but_flex():
    found = {}
    for backend in ("eager", "sdpa", "flex"):
        config = config_of("base", attention_backend=backend, attention_dropout=0.0, layers=2)
        found[backend] = [
            costs_of(config, shape_of(r, t, 0), precision="bf16-mixed", device="cuda").kept["layers"]
            for r, t in ((8, 250), (1, 2000))
        ]
    assert found["flex"][1] - found["flex"][0] == pytest.approx(4 * 12 * 2 * (2000 - 250), abs=64), "the table"
    assert found["flex"][0] < found["sdpa"][0] < found["eager"][0]
    scores = 12 * (2000**2 - 8 * 250**2)  # of one layer; heads times frames squared
    shared = 12 * (2000**2 - 250**2)  # of one row
    # sdpa: the gated bias in 16 bits, and each layer's 16-bit copy of the bias. eager: a float32 softmax, its 16-bit copy; the bias.
    assert found["sdpa"][1] - found["sdpa"][0] == pytest.approx(2 * 2 * (scores + shared), rel=2e-3)
    assert found["eager"][1] - found["eager"][0] == pytest.approx(2 * 6 * scores + 4 * shared, rel=2e-3)


def test_a_fused_kernel_keeps_its_arguments_its_output_and_a_normaliser():
    for precision, low in (("32-true", 4), ("bf16-mixed", 2), ("16-mixed", 2)):
        kept = {
            backend: costs_of(
                dataclasses.replace(SMALL, attention_backend=backend, layers=1),
                shape_of(2, 100),
                precision=precision,
                device="cuda",
            ).kept["layers"]
            for backend in ("sdpa", "flex", "eager")
        }
        scores, bias, normaliser = 2 * 3 * 100 * 100, 3 * 100 * 100, 4 * 2 * 3 * 100
        # The bias in float32 is made once for all layers, and only read by sdpa in the products' type.
        softmax = 4 * scores + (2 * scores if low == 2 else 0)
        dense = low * scores + low * bias
        gate = low * 2 * 3 * 100 if low == 2 else 0  # cast for sdpa; flex keeps the float32 gate, as eager does
        table = 4 * 3 * (2 * 100 - 1)
        assert kept["sdpa"] - kept["eager"] == pytest.approx(
            dense + normaliser + gate - softmax - 4 * bias - (4 * 2 * 3 * 100 if low == 2 else 0), abs=64
        )
        assert kept["flex"] - kept["eager"] == pytest.approx(normaliser + table - softmax - 4 * bias, abs=256)  # the padding mask


def test_dropout_masks_take_a_byte_on_a_gpu_and_four_on_a_cpu():
    for device, size in (("cuda", 1), ("cpu", 4)):
        found = [
            costs_of(dataclasses.replace(SMALL, dropout=rate, input_dropout=rate), shape_of(2, 50), device=device).kept
            for rate in (0.0, 0.1)
        ]
        extra = {part: found[1][part] - found[0][part] for part in found[1]}
        mask = size * 2 * 50 * 24
        # After the input and before the first layer; in each of two layers after attention and feed-forward.
        assert extra.pop("encoder input") == 2 * mask and extra.pop("layers") == 2 * 2 * mask
        assert set(extra.values()) == {0}


@pytest.mark.parametrize("recompute", ["none", "extractor", "all"])
def test_the_peak_is_that_of_the_larger_of_two_moments(recompute):
    config = dataclasses.replace(SMALL, recompute=recompute)
    shape = shape_of(2, 100)
    kept = {"extractor": 5_000_000, "features": 30_000, "encoder input": 40_000, "layers": 600_000, "head": 70_000}
    waveforms, inputs = 6 * 2 * num_samples_of(100), 2 * 4 * 2 * 100 * 24 + 4 * 3 * 100**2
    expected = {"waveforms": waveforms, **kept} | ({"layers": inputs} if recompute == "all" else {})
    if recompute != "none":
        del expected["extractor"]
    for of_extractor, of_layers in ((4_000_000, 200_000), (10_000, 90_000_000)):
        largest = {"extractor": of_extractor, "features": 9, "encoder input": 8, "layers": of_layers, "head": 7}
        ours = estimate_memory(config, 1000, Costs({}, {}, 0, kept, largest), shape, precision="32-true")
        begins = 2 * of_layers + (300_000 if recompute == "all" else 0)
        ends = waveforms + 30_000 + 5_000_000 + 2 * of_extractor - sum(expected.values())
        assert ours.kept == expected and ours.backward == max(begins, ends)
        assert (begins > ends) == (of_layers > of_extractor)
        assert ours.total == sum(expected.values()) + max(begins, ends) + 16 * 1000


def test_a_frozen_extractor_keeps_nothing():
    config = dataclasses.replace(SMALL, feature_grad_mult=0.0)
    ours = memory_of(config, shape_of(2, 100))
    assert "extractor" not in ours.kept and ours.backward > 0


def test_a_state_is_whole_under_ddp_and_shared_out_under_fsdp():
    shape, count = shape_of(1, 50), sum(p.numel() for p in built(SMALL).parameters())

    def states(**settings):
        return memory_of(SMALL, shape, **settings).states

    whole = {"parameters": 4 * count, "gradients": 4 * count, "moments": 8 * count}
    assert states() == whole and states(ema=True) == {**whole, "running mean": 4 * count}
    assert states(processes=2) == {**whole, "buckets": 4 * count}
    assert states(precision="bf16-mixed") == {**whole, "weights in 16 bits": 2 * count}
    assert sum(states(precision="16-mixed", processes=4).values()) == 22 * count
    shared = {name: -(-value // 3) for name, value in {**whole, "running mean": 4 * count}.items()}
    gathered = 2 * 4 * (count // 2)  # two of two layers are whole at a time
    assert states(processes=3, strategy="fsdp", ema=True) == {**shared, "gathered": gathered}
    mixed = states(processes=3, strategy="fsdp", ema=True, precision="bf16-mixed")
    assert mixed == {**shared, "gathered": gathered, "weights in 16 bits": gathered // 2}
    assert states(strategy="fsdp") == whole, "alone nothing is shared out"


# --- counting leaves no trace ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_counting_changes_neither_draws_nor_autocast_nor_later_log_mels(precision):
    config = dataclasses.replace(SMALL, front_end="logmel", **DROPOUT)
    before = torch.get_rng_state(), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cpu")
    for device in ("cpu", "cuda"):
        count_costs.cache_clear()
        assert costs_of(config, shape_of(2, 50), precision=precision, device=device).kept
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cpu")) == before[1:]
    assert log_mel(torch.zeros(1, 16_000)).isfinite().all(), "window and bands are real tensors"
    assert attention.flex_gated_attention.__name__ == "flex_gated_attention"
