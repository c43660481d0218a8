"""Parameters, operations and memory that are computed from a config are those of the model that it builds."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from openwavlm.audio.frames import num_samples_of
from openwavlm.model.config import WavLMConfig
from openwavlm.model.costs import HeadShape, MicroBatchShape, count_flops, count_parameters
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.planning.memory import estimate_memory
from openwavlm.runs.compose import plain
from openwavlm.training.build import make_model
from openwavlm.training.config import RunConfig
from runs import compose

MODELS = ("nano", "nano_mel", "small", "base", "base_plus", "large")
CLASSES = 20


def config_of(model: str, **changes: object) -> WavLMConfig:
    places = ["name=x", "data.sources.speech.shards=a", "data.sources.speech.labels=b"]
    parts = RunConfig.of(plain(compose([*places, f"model={model}"])))
    return dataclasses.replace(parts.model, **changes)


def built(config: WavLMConfig) -> tuple[WavLMForPretraining, HeadShape]:
    return WavLMForPretraining(WavLM(config), num_classes=CLASSES, final_dim=32), HeadShape(final_dim=32, embeddings=CLASSES)


def step(model: WavLMForPretraining, rows: int, frames: int) -> tuple[MicroBatchShape, PretrainingOutput, Tensor]:
    """A forward pass over `rows` of `frames` frames, of which every second is predicted, and its loss."""
    samples, positions = num_samples_of(frames), rows * frames
    mask = torch.arange(positions) % 2 == 0
    index = torch.arange(0, positions, 2)
    output = model(
        torch.randn(rows, samples),
        torch.full((rows,), samples),
        mask.view(rows, frames),
        index,
        [index % CLASSES],
        torch.ones(model.wavlm.config.layers, dtype=torch.bool),
    )
    loss = output.sets[0].cross_entropy_sum + output.feature_penalty
    return MicroBatchShape(rows=rows, samples=samples, predicted_frames=len(index)), output, loss


# --- parameters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_parameters_of_every_model_are_counted_exactly(model):
    with torch.device("meta"):
        made, head = built(config_of(model))
    counted = count_parameters(made.wavlm.config, head)
    assert sum(counted.values()) == sum(p.numel() for p in made.parameters())
    layers = sum(p.numel() for name, p in made.named_parameters() if ".layers." in name and "extractor" not in name)
    norms = 4 * made.wavlm.config.dim * made.wavlm.config.layers
    assert counted["attention"] + counted["feed_forward"] + norms == layers


def test_biases_of_convolutions_and_special_rows_are_counted():
    with torch.device("meta"):
        made, _ = built(config_of("nano", conv_bias=True))
        more = make_model(SimpleNamespace(model=made.wavlm.config, head=Special()), CLASSES)
    counted = count_parameters(made.wavlm.config, HeadShape(final_dim=32, embeddings=CLASSES + 4))
    assert sum(counted.values()) == sum(p.numel() for p in more.parameters())


@dataclasses.dataclass
class Special:
    final_dim: int = 32
    logit_temperature: float = 0.1
    special_rows: int = 4
    label_init: str = "uniform"


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
    model, head = built(config_of(name, **changes))
    with FlopCounterMode(display=False) as counter:
        shape, _, loss = step(model.train(), rows, frames)
        seen_forward = counter.get_total_flops()
        loss.backward()
    ours = count_flops(model.wavlm.config, head, shape, recompute=model.wavlm.config.recompute)
    assert sum(ours.forward.values()) == pytest.approx(seen_forward, rel=0.02)
    # torch counts the weight gradient of a convolution with groups as if it had none.
    config = model.wavlm.config
    surplus = ours.forward["positional"] * (config.positional_groups - 1)
    seen_backward = counter.get_total_flops() - seen_forward - surplus
    assert sum(ours.backward.values()) + ours.recomputed == pytest.approx(seen_backward, rel=0.02)


def test_what_is_computed_again_costs_a_forward_more():
    config, head = config_of("base"), HeadShape(final_dim=256, embeddings=500)
    shape = MicroBatchShape(rows=4, samples=num_samples_of(500), predicted_frames=1000)
    none, extractor, everything = (count_flops(config, head, shape, recompute=r) for r in ("none", "extractor", "all"))
    assert none.recomputed == 0 and extractor.recomputed == none.forward["extractor"]
    layers = sum(none.forward[part] for part in ("attention", "scores", "feed_forward"))
    assert everything.recomputed == extractor.recomputed + layers
    assert extractor.total == none.total + extractor.recomputed
    with pytest.raises(ValueError, match=r"recompute must be one of none, extractor, all, but is 'some'"):
        count_flops(config, head, shape, recompute="some")  # type: ignore[arg-type]


def test_a_layer_that_is_skipped_costs_nothing():
    shape, head = MicroBatchShape(rows=1, samples=16_000, predicted_frames=25), HeadShape(final_dim=8, embeddings=8)
    whole = count_flops(config_of("base"), head, shape).forward
    half = count_flops(config_of("base", layer_drop=0.5, layer_drop_mode="skip"), head, shape).forward
    assert half["scores"] * 2 == whole["scores"] and half["feed_forward"] * 2 == whole["feed_forward"]
    assert half["extractor"] == whole["extractor"]


# --- memory -------------------------------------------------------------------------------------------------------------


def saved_bytes(model: WavLMForPretraining, rows: int, frames: int, precision: str) -> tuple[MicroBatchShape, int]:
    """Unique storages that autograd keeps of a step, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32-true"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        shape, _, _ = step(model.train(), rows, frames)
    return shape, sum(storage.nbytes() for storage in storages.values())


DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "input_dropout": 0.1}
NO_DROPOUT = dict.fromkeys(DROPOUT, 0.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("name", "changes", "rows", "frames"),
    [
        ("nano", {}, 4, 99),
        ("nano", DROPOUT, 2, 300),
        ("nano", {"pre_norm": False, "attention_backend": "sdpa", **DROPOUT}, 2, 300),
        ("nano_mel", {}, 4, 150),
        ("small", {"layers": 3, **NO_DROPOUT}, 2, 200),
        ("small", {"layers": 3, "attention_backend": "eager"}, 2, 200),
        ("small", {"layers": 3, "recompute": "all"}, 2, 200),
        ("nano", {"recompute": "extractor"}, 4, 99),
        ("large", {"layers": 1, "dim": 256, "ffn_dim": 1024, "heads": 4}, 2, 100),
    ],
)
def test_the_activations_of_a_step_are_those_that_autograd_keeps(name, changes, rows, frames, precision):
    model, head = built(config_of(name, **changes))
    shape, seen = saved_bytes(model, rows, frames, precision)
    config = model.wavlm.config
    ours = estimate_memory(config, head, shape, precision=precision, device="cpu", recompute=config.recompute)
    # Autograd keeps the weights' 16-bit copies too, but not those of layers that are computed again.
    copies = ours.states.get("weights in 16 bits", 0)
    if copies and config.recompute == "all":
        parts = count_parameters(config, head)
        copies -= 2 * (parts["extractor"] + parts["attention"] + parts["feed_forward"])
    counted = sum(ours.kept.values()) + copies
    assert counted == pytest.approx(seen, rel=0.15), (ours.kept, seen, counted / seen)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("name", "changes", "rows", "frames"),
    [
        ("nano", {}, 4, 200),
        pytest.param("small", {"layers": 2, **NO_DROPOUT, "attention_backend": "eager"}, 2, 150, marks=pytest.mark.long),
    ],
)
def test_the_peak_of_a_step_of_two_micro_batches_is_the_estimate(name, changes, rows, frames, precision):
    model, head = built(config_of(name, **changes))
    optimizer = torch.optim.AdamW(model.train().parameters(), fused=True)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for number in range(4):  # the second step: now there are moments
            tracker.reset_mod_stats()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32-true"):
                shape, output, loss = step(model, rows, frames)
            loss.backward()
            del output, loss
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    ((seen),) = [figures["Total"] for figures in tracker.get_tracker_snapshot("peak").values()]
    config = model.wavlm.config
    ours = estimate_memory(config, head, shape, precision=precision, device="cpu", recompute=config.recompute)
    assert ours.total == pytest.approx(seen, rel=0.25), (ours, seen)


def test_the_bias_costs_frames_squared_in_all_backends_but_flex():
    head, found = HeadShape(final_dim=256, embeddings=500), {}
    for backend in ("eager", "sdpa", "flex"):
        config = config_of("base", attention_backend=backend, attention_dropout=0.0)
        found[backend] = [
            estimate_memory(config, head, shape, precision="bf16-mixed").kept["layers"]
            for shape in (
                MicroBatchShape(rows=r, samples=num_samples_of(t), predicted_frames=0) for r, t in ((8, 250), (1, 2000))
            )
        ]
    assert found["flex"][0] == found["flex"][1] < found["sdpa"][0] < found["eager"][0]
    scores = 12 * 12 * 2 * (2000**2 - 8 * 250**2)  # layers, heads, bytes
    shared = 12 * 12 * 2 * (2000**2 - 250**2)
    assert found["sdpa"][1] - found["sdpa"][0] == scores + shared
    assert found["eager"][1] - found["eager"][0] == 3 * scores, "a float32 softmax and its 16-bit copy"


def test_what_is_computed_again_is_not_kept():
    config, head = config_of("base"), HeadShape(final_dim=256, embeddings=500)
    shape = MicroBatchShape(rows=8, samples=num_samples_of(780), predicted_frames=3000)
    totals = [
        estimate_memory(config, head, shape, precision="bf16-mixed", recompute=r).total for r in ("none", "extractor", "all")
    ]
    assert totals[0] > totals[1] > totals[2]


SMALL = WavLMConfig(
    conv_dims=(8, 16, 16, 16, 16, 16, 16), dim=24, ffn_dim=40, heads=3, layers=2, positional_kernel=8, positional_groups=2,
    num_buckets=32, max_distance=80, attention_backend="eager", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    input_dropout=0.0,
)  # fmt: skip


def kept_by_hand(rows: int, frames: int, predicted: int) -> tuple[dict[str, int], int, int]:
    """Bytes of the float32 tensors that autograd keeps of `SMALL`, of the extractor's, and of its largest output."""
    positions, samples = rows * frames, 320 * (frames - 1) + 400
    outputs, length = [], samples
    for kernel, stride, width in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), SMALL.conv_dims, strict=True):
        length = (length - kernel) // stride + 1
        outputs.append(4 * rows * length * width)
    assert length == frames
    # Of each convolution its output and its GELU's; of the first its norm's too; the last GELU's output is `features`.
    extractor = 2 * sum(outputs) + outputs[0] - outputs[-1]
    kernel = 4 * 8 * 24 * 24 // 2
    bias = 4 * 3 * frames * frames
    # Post-norm: the projection's input, the positional convolution's input and output (a frame more), the norm's input.
    entry = 4 * positions * 16 + 4 * positions * 24 + 4 * rows * (frames + 1) * 24 + kernel + 4 * positions * 24 + bias
    layer = 4 * positions * (8 * 24 + 2 * 40 + 4 * 3) + 4 * rows * 3 * frames * frames
    head = 4 * predicted * (24 + 2 * 32 + CLASSES) + 4 * CLASSES * 32
    kept = {
        "waveforms": 6 * rows * samples,
        "features": 4 * positions * 16,
        "encoder input": entry,
        "layers": 2 * layer,
        "head": head,
    }
    return kept, extractor, max(outputs)


@pytest.mark.parametrize(
    ("rows", "frames", "predicted", "largest", "scores_dominate"),
    [
        (2, 100, 60, 4 * 2 * 100 * 3 * 100, False),  # scores: rows · heads · frames²
        (1, 600, 100, 4 * 3 * 600 * 600, True),
        (4, 10, 40, 4 * 4 * 10 * 40, False),  # the feed-forward's inner width
    ],
)
def test_the_peak_is_that_of_the_larger_of_two_moments(rows, frames, predicted, largest, scores_dominate):
    config, head = SMALL, HeadShape(final_dim=32, embeddings=CLASSES)
    shape = MicroBatchShape(rows=rows, samples=num_samples_of(frames), predicted_frames=predicted)
    kept, extractor, convolution = kept_by_hand(rows, frames, predicted)
    layer = kept["layers"] // 2
    for recompute in ("none", "extractor", "all"):
        ours = estimate_memory(config, head, shape, precision="32-true", recompute=recompute)
        expected = {**kept, "layers": 2 * 4 * rows * frames * 24} if recompute == "all" else dict(kept)
        if recompute == "none":
            expected["extractor"] = extractor
        assert ours.kept == expected
        begins = sum(expected.values()) + 2 * largest + (layer if recompute == "all" else 0)
        ends = kept["waveforms"] + kept["features"] + extractor + 2 * convolution
        assert ours.activations == max(begins, ends) and (begins > ends) >= scores_dominate
        assert ours.total == ours.activations + 16 * sum(count_parameters(config, head).values())


def test_dropout_masks_take_a_byte_on_a_gpu_and_four_on_a_cpu():
    head, shape = (
        HeadShape(final_dim=32, embeddings=CLASSES),
        MicroBatchShape(rows=2, samples=num_samples_of(50), predicted_frames=9),
    )
    found = {}
    for device in ("cuda", "cpu"):
        for rate in (0.0, 0.1):
            config = dataclasses.replace(SMALL, dropout=rate, input_dropout=rate)
            found[device, rate] = estimate_memory(config, head, shape, precision="32-true", device=device).kept
        extra = {part: found[device, 0.1][part] - found[device, 0.0][part] for part in found[device, 0.1]}
        size = (1 if device == "cuda" else 4) * 2 * 50 * 24
        # After the input and before the first layer; in each of two layers after attention and feed-forward.
        assert extra["encoder input"] == 2 * size and extra["layers"] == 2 * 2 * size
        assert extra["head"] == extra["features"] == extra["waveforms"] == 0


def test_a_state_is_whole_under_ddp_and_shared_out_under_fsdp():
    head, shape = HeadShape(final_dim=32, embeddings=CLASSES), MicroBatchShape(rows=1, samples=16_000, predicted_frames=9)
    count = sum(count_parameters(SMALL, head).values())

    def states(**settings):
        return estimate_memory(SMALL, head, shape, **{"precision": "32-true", **settings}).states

    whole = {"parameters": 4 * count, "gradients": 4 * count, "moments": 8 * count}
    assert states() == whole and states(ema=True) == {**whole, "running mean": 4 * count}
    assert states(processes=2) == {**whole, "buckets": 4 * count}
    assert states(precision="bf16-mixed") == {**whole, "weights in 16 bits": 2 * count}
    shared = {name: -(-value // 3) for name, value in {**whole, "running mean": 4 * count}.items()}
    gathered = 2 * 4 * (count // 2)  # two of two layers are whole at a time
    assert states(processes=3, strategy="fsdp", ema=True) == {**shared, "gathered": gathered}
    mixed = states(processes=3, strategy="fsdp", ema=True, precision="bf16-mixed")
    assert mixed == {**shared, "gathered": gathered, "weights in 16 bits": gathered // 2}
    assert states(strategy="fsdp") == whole, "alone nothing is shared out"


def test_operations_of_each_part_are_those_that_torch_counts_in_its_modules():
    for changes in ({}, {"pre_norm": True, "extractor_norm": "layer"}, {"attention_backend": "sdpa", "positional_kernel": 7}):
        model, head = built(dataclasses.replace(SMALL, **changes))
        with FlopCounterMode(display=False) as counter:
            shape, _, _ = step(model.train(), 2, 60)
        seen = {
            name.removeprefix("WavLMForPretraining").lstrip("."): counts for name, counts in counter.get_flop_counts().items()
        }
        total = {name: sum(counts.values()) for name, counts in seen.items()}
        layers = [f"wavlm.encoder.layers.{number}" for number in range(2)]
        products = sum(total[f"{layer}.attention"] for layer in layers)
        linear = sum(count for layer in layers for kind, count in seen[f"{layer}.attention"].items() if "addmm" in str(kind))
        ours = count_flops(model.wavlm.config, head, shape).forward
        assert ours == {
            "extractor": sum(
                count for name, count in total.items() if name.startswith("wavlm.extractor.layers.") and name.count(".") == 3
            ),
            "projection": total["wavlm.projection"],
            "positional": total["wavlm.encoder.positional"],
            "attention": linear,
            "scores": products - linear,
            "feed_forward": sum(total[f"{layer}.feed_forward"] for layer in layers),
            "head": total[""] - total["wavlm.projection"] - total["wavlm.encoder"] - ours["extractor"],
        }
        assert ours["head"] == 2 * 60 * 32 * (24 + CLASSES)


def test_log_mels_are_products_with_the_bands_and_with_the_linear_map_whose_weights_alone_have_a_gradient():
    config = config_of("nano_mel")
    shape = MicroBatchShape(rows=3, samples=num_samples_of(50), predicted_frames=40)
    ours = count_flops(config, HeadShape(final_dim=32, embeddings=CLASSES), shape)
    linear = 2 * 150 * 40 * config.conv_dims[-1]
    assert ours.forward["extractor"] == 2 * 150 * 257 * 40 + linear and ours.backward["extractor"] == linear


def test_several_label_sets_have_projections_and_embeddings_of_their_own():
    shape = MicroBatchShape(rows=2, samples=num_samples_of(60), predicted_frames=50)
    one, two = HeadShape(final_dim=32, embeddings=30), HeadShape(final_dim=32, embeddings=30, projections=2)
    assert count_parameters(SMALL, two)["head"] - count_parameters(SMALL, one)["head"] == 25 * 32
    assert count_flops(SMALL, two, shape).forward["head"] == 2 * 50 * (2 * 24 * 32 + 32 * 30)
    with torch.device("meta"):
        made = WavLMForPretraining(WavLM(SMALL), num_classes=[10, 20], final_dim=32)
    assert sum(count_parameters(SMALL, two).values()) == sum(p.numel() for p in made.parameters())


def test_states_are_sixteen_bytes_a_parameter_and_two_more_in_16_bits():
    config, head = config_of("base"), HeadShape(final_dim=256, embeddings=500)
    shape = MicroBatchShape(rows=1, samples=16_000, predicted_frames=25)
    parameters = sum(count_parameters(config, head).values())
    for precision, processes, expected in (("32-true", 1, 16), ("bf16-mixed", 1, 18), ("16-mixed", 4, 22)):
        states = estimate_memory(config, head, shape, precision=precision, processes=processes).states
        assert sum(states.values()) == expected * parameters


def bytes_by_hand(
    config: WavLMConfig, rows: int, frames: int, predicted: int, head: HeadShape, *, low: int, mask: int, on_gpu: bool
) -> tuple[dict[str, int], int, int, int, int]:
    """Of a step of `config`, whose sizes are those of `SMALL`: bytes kept by part, of one layer and of the extractor, and of the
    largest tensors of the extractor and of the encoder; `low` bytes a product, `mask` bytes an entry of a dropout mask."""
    positions, samples, mixed, backend = rows * frames, 320 * (frames - 1) + 400, low == 2, config.attention_backend
    outputs, length = [], samples
    for kernel, stride, width in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), (8, *[16] * 6), strict=True):
        length = (length - kernel) // stride + 1
        outputs.append(rows * length * width)
    # Norms compute in float32 whatever the products have; a 16-bit copy of the waveform is read by the first convolution.
    normed = outputs if config.extractor_norm == "layer" else outputs[:1]
    extractor = 2 * low * sum(outputs) - low * outputs[-1] + 4 * sum(normed) + (2 * rows * samples if mixed else 0)
    widest = max(max(4 * count for count in normed), max((low * count for count in outputs[len(normed) :]), default=0))
    if config.feature_grad_mult == 0:
        extractor = widest = 0

    entry = [low * positions * 16, low * positions * 24, low * rows * (frames + 1) * 24]  # maps' inputs; 8 is even: a frame more
    entry += [] if mixed else [4 * 8 * 24 * 24 // 2]
    entry += [] if config.pre_norm else [4 * positions * 24]
    entry += [mask * positions * 24] * ((config.input_dropout > 0) + (config.dropout > 0))
    entry += [] if backend == "flex" else [4 * 3 * frames**2]

    scores = positions * 3 * frames
    dropped = config.attention_dropout > 0
    attention = {
        "flex": [4 * positions * 3],
        "eager": [4 * scores, low * scores if mixed or dropped else 0, mask * scores * dropped],
        "sdpa": [low * scores, 4 * positions * 3, 2 * 3 * frames**2 if mixed else 0]
        if on_gpu
        else [low * scores, (mask + low) * scores * dropped],
    }[backend]
    stream = {(True, True): 26, (True, False): 30}.get((mixed, config.pre_norm), 32)  # bytes a channel
    layer = positions * (stream * 24 + 2 * low * 40 + 4 * 4 * 3) + sum(attention)
    layer += positions * (2 * mask * 24 * (config.dropout > 0) + (mask + low) * 40 * (config.activation_dropout > 0))

    classes = head.embeddings
    closing = 4 * positions * 24 if config.pre_norm else 0
    predictions = predicted * (low * 24 + head.projections * 2 * 4 * head.final_dim + 4 * classes) + 4 * classes * head.final_dim
    kept = {
        "waveforms": rows * samples * 2 + rows * samples * 4,
        "features": positions * 16 * (2 + 4 + 4 if mixed else 4),
        "encoder input": sum(entry),
        "layers": 2 * layer,
        "head": closing + predictions,
    }
    softmax = {"flex": 0, "eager": 4 * scores, "sdpa": low * scores}[backend]
    largest = max(softmax, low * positions * 40, 4 * positions * 24, 4 * predicted * classes)
    return kept, layer, extractor, widest, largest


LAYER_NORMED = {"pre_norm": True, "extractor_norm": "layer"}
EVERY_DROPOUT = {"input_dropout": 0.1, "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_every_part_of_the_memory_is_the_sum_of_its_tensors(backend, device, precision):
    """At shapes at which each tensor in turn is the largest one, with and without each dropout."""
    sizes = {"low": 4 if precision == "32-true" else 2, "mask": 1 if device == "cuda" else 4, "on_gpu": device == "cuda"}
    single = [{name: 0.1} for name in EVERY_DROPOUT]
    for changes in ({}, LAYER_NORMED, EVERY_DROPOUT, {**LAYER_NORMED, **EVERY_DROPOUT}, {"feature_grad_mult": 0.0}, *single):
        if backend == "flex" and changes.get("attention_dropout"):
            continue  # flex cannot drop attention weights
        config = dataclasses.replace(SMALL, attention_backend=backend, **changes)
        for rows, frames, predicted, embeddings in ((2, 100, 60, 20), (1, 600, 100, 20), (4, 10, 40, 20), (2, 9, 18, 900)):
            head = HeadShape(final_dim=32, embeddings=embeddings, projections=2)
            shape = MicroBatchShape(rows=rows, samples=num_samples_of(frames), predicted_frames=predicted)
            kept, layer, extractor, widest, largest = bytes_by_hand(config, rows, frames, predicted, head, **sizes)
            for recompute in ("none", "extractor", "all"):
                expected = dict(kept) | ({"layers": 2 * 4 * rows * frames * 24} if recompute == "all" else {})
                expected |= {"extractor": extractor} if recompute == "none" else {}
                ours = estimate_memory(config, head, shape, precision=precision, recompute=recompute, device=device)
                assert ours.kept == expected, (changes, rows, recompute)
                begins = 2 * largest + (layer if recompute == "all" else 0)
                ends = kept["waveforms"] + kept["features"] + extractor + 2 * widest - sum(expected.values())
                assert ours.backward == max(begins, ends), (changes, rows, recompute)


def test_log_mels_keep_their_bands_in_float32_and_no_waveform_sized_gradient():
    config = dataclasses.replace(SMALL, front_end="logmel")
    shape = MicroBatchShape(rows=2, samples=num_samples_of(30), predicted_frames=9)
    for precision in ("32-true", "bf16-mixed"):
        ours = estimate_memory(config, HeadShape(final_dim=32, embeddings=CLASSES), shape, precision=precision)
        assert ours.kept["extractor"] == 4 * 2 * 30 * 40, "frames of 40 bands"
        scores = 4 * 2 * 30 * 3 * 30
        assert ours.backward == 2 * max(scores, 4 * 60 * 24, (2 if precision == "bf16-mixed" else 4) * 60 * 40)


PARTS = {
    "extractor": r"wavlm\.extractor\.",
    "projection": r"wavlm\.(feature_norm|projection)\.",
    "mask_embedding": r"wavlm\.mask_embedding",
    "positional": r"wavlm\.encoder\.positional\.",
    "relative_bias": r"wavlm\.encoder\.relative_bias\.",
    "attention": r"wavlm\.encoder\.layers\.\d\.attention\.",
    "feed_forward": r"wavlm\.encoder\.layers\.\d\.feed_forward\.",
    "norms": r"wavlm\.encoder\.(layers\.\d\.(attention|feed_forward)_)?norm\.",
    "head": r"(other_heads\.\d\.)?(label_embeddings|final_proj)",
}


def operations_by_hand(config: WavLMConfig, rows: int, frames: int, predicted: int, head: HeadShape) -> dict[str, int]:
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
        "head": 2 * predicted * (head.projections * 24 * head.final_dim + head.embeddings * head.final_dim),
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
    ],
)
def test_forward_backward_and_recomputed_operations_are_those_of_the_products(changes):
    config, head = dataclasses.replace(SMALL, **changes), HeadShape(final_dim=32, embeddings=CLASSES, projections=2)
    shape = MicroBatchShape(rows=3, samples=num_samples_of(50), predicted_frames=70)
    expected = operations_by_hand(config, 3, 50, 70, head)
    first = 2 * 3 * ((num_samples_of(50) - 10) // 5 + 1) * 10 * 8
    frozen = config.feature_grad_mult == 0
    backward = {part: 2 * count for part, count in expected.items()}
    backward["extractor"] = 0 if frozen else 2 * expected["extractor"] - first  # the waveform has no gradient
    layers = expected["attention"] + expected["scores"] + expected["feed_forward"]
    # Pre-norm without dropout: the last product of a layer is an output that nothing in the backward reads.
    unread = expected["feed_forward"] // 2 if config.pre_norm and not config.dropout else 0
    extractor = 0 if frozen else expected["extractor"]
    for recompute, again in (("none", 0), ("extractor", extractor), ("all", extractor + layers - unread)):
        ours = count_flops(config, head, shape, recompute=recompute)
        assert (ours.forward, ours.backward, ours.recomputed) == (expected, backward, again)
        assert ours.total == sum(expected.values()) + sum(backward.values()) + again


def test_a_skipped_log_mel_front_end_and_its_recomputation_cost_what_their_two_products_do():
    head = HeadShape(final_dim=32, embeddings=CLASSES)
    shape = MicroBatchShape(rows=3, samples=num_samples_of(50), predicted_frames=40)
    both, linear = 2 * 150 * (257 * 40 + 40 * 16), 2 * 150 * 40 * 16
    for mult, backward, again in ((1.0, linear, both), (0.0, 0, 0)):
        config = dataclasses.replace(SMALL, front_end="logmel", feature_grad_mult=mult)
        ours = count_flops(config, head, shape, recompute="extractor")
        assert (ours.forward["extractor"], ours.backward["extractor"], ours.recomputed) == (both, backward, again)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv_bias": True},
        {"pre_norm": True, "extractor_norm": "layer"},
        {"front_end": "logmel"},
        {"positional_groups": 4, "num_buckets": 48},
    ],
)
def test_the_parameters_of_each_part_are_those_of_its_modules(changes):
    config = dataclasses.replace(SMALL, **changes)
    with torch.device("meta"):
        made = WavLMForPretraining(WavLM(config), num_classes=[10, 20], final_dim=32)
    seen = {
        part: sum(p.numel() for name, p in made.named_parameters() if re.match(pattern, name)) for part, pattern in PARTS.items()
    }
    assert sum(seen.values()) == sum(p.numel() for p in made.parameters())
    assert count_parameters(config, HeadShape(final_dim=32, embeddings=30, projections=2)) == seen
