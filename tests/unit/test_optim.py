"""The optimiser: the schedule's values, which parameters decay, and that a skipped update leaves everything as it was."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from openwavlm.batches.settings import Mixing
from openwavlm.training.control import Control
from openwavlm.training.masked_prediction import MaskedPrediction
from openwavlm.training.module import TrainingModule
from openwavlm.training.optim import Optim
from openwavlm.training.settings import Loss


def test_the_rate_rises_to_its_peak_and_falls_to_its_end():
    optim = Optim(updates=100, lr=1.0, warmup_updates=9, final_share=0.1)
    rates = [optim.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(rates) == rates[9] == 1.0
    falls = [a - b for a, b in itertools.pairwise(rates[9:])]
    assert falls == pytest.approx([0.9 / 91] * 90)
    assert optim.learning_rate(100) == pytest.approx(0.1)


def test_the_first_update_moves_with_and_without_warm_up():
    assert Optim(updates=10, lr=1.0, warmup_updates=0).learning_rate(0) == 1.0
    assert Optim(updates=10, lr=1.0, warmup_updates=1).learning_rate(0) == 0.5
    assert Optim(updates=10, lr=1.0, warmup_updates=0, final_share=1.0).learning_rate(9) == 1.0


def test_warm_up_stable_decay_holds_the_peak_until_the_last_share():
    optim = Optim(updates=100, lr=2.0, warmup_updates=10, schedule="wsd", decay_share=0.2, final_share=0.1)
    assert [optim.learning_rate(step) for step in range(10, 81)] == [2.0] * 71
    assert optim.learning_rate(90) == pytest.approx(0.5 * (2.0 + 0.2))
    assert optim.learning_rate(100) == pytest.approx(0.2)
    longer = Optim(updates=200, lr=2.0, warmup_updates=10, schedule="wsd", decay_share=0.2)
    assert all(longer.learning_rate(step) == optim.learning_rate(step) for step in range(80)), "a longer run begins as a shorter"


def test_the_running_mean_forgets_the_initial_weights():
    optim = Optim(updates=10_000, ema=0.999, warmup_updates=0)
    assert optim.ema_decay(0) == 0.1 and optim.ema_decay(9_999) == 0.999
    left = 1.0
    for step in range(100):
        left *= optim.ema_decay(step)
    assert left < 1e-9, "what the initial weights still count after 100 updates"


def module() -> nn.Module:
    made = nn.Linear(2, 3)
    made.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    for parameter in made.parameters():
        nn.init.ones_(parameter)
    return made


@pytest.mark.parametrize(("decay", "bias_decays"), [("matrices", False), ("all", True)])
def test_matrices_decay_and_vectors_only_if_asked(decay, bias_decays):
    linear = module()
    matrix, bias, frozen = linear.weight, linear.bias, linear.frozen
    optimizer = Optim(updates=1, warmup_updates=0, lr=0.1, weight_decay=0.5, decay=decay).optimizer(linear)
    matrix.grad, bias.grad = torch.zeros(3, 2), torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(matrix.data, torch.full((3, 2), 0.95))
    torch.testing.assert_close(bias.data, torch.full((3,), 0.95 if bias_decays else 1.0))
    assert torch.equal(frozen, torch.ones(2, 2)) and sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_the_optimiser_has_the_settings_and_its_groups_are_by_shape():
    made = nn.Module()
    shapes = {
        "matrix": (3, 2),
        "conv": (4, 2, 3),
        "vector": (5,),
        "row": (1, 5),
        "gain": (1, 1, 7),
        "heads": (1, 4, 1, 1),
        "one": (),
    }
    for name, shape in shapes.items():
        setattr(made, name, nn.Parameter(torch.ones(shape)))
    optim = Optim(updates=9, warmup_updates=3, lr=0.3, betas=(0.7, 0.9), eps=1e-5, weight_decay=0.02)
    assert [list(group) for group in optim.groups(made)] == [["matrix", "conv"], ["vector", "row", "gain", "heads", "one"]]
    optimizer = optim.optimizer(made)
    assert type(optimizer) is torch.optim.AdamW
    assert [optimizer.defaults[name] for name in ("lr", "betas", "eps", "amsgrad", "fused")] == [
        0.3,
        (0.7, 0.9),
        1e-5,
        False,
        True,
    ]
    for group, decay, names in zip(optimizer.param_groups, (0.02, 0.0), optim.groups(made), strict=True):
        assert group["weight_decay"] == decay and [id(p) for p in group["params"]] == [id(p) for p in names.values()]
        assert (group["betas"], group["eps"], group["lr"]) == ((0.7, 0.9), 1e-5, 0.3)
    everything = Optim(updates=9, warmup_updates=3, weight_decay=0.02, decay="all")
    for order in (list(shapes), list(shapes)[::-1]):  # a model's first parameter may be a vector, as WavLM's mask embedding is
        made = nn.Module()
        for name in order:
            setattr(made, name, nn.Parameter(torch.ones(shapes[name])))
        assert [list(group) for group in everything.groups(made)] == [order]
        assert [group["weight_decay"] for group in everything.optimizer(made).param_groups] == [0.02]
    vectors = nn.Module()
    vectors.gain = nn.Parameter(torch.ones(1, 1, 7))
    assert [group["weight_decay"] for group in optim.optimizer(vectors).param_groups] == [0.0]


def test_the_defaults_are_huberts():
    """HuBERT Base (fairseq's `hubert_base_librispeech`): peak 5e-4 after 8 % of 400k updates, Adam (0.9, 0.98), eps 1e-6, clip 10."""
    assert Optim(updates=400_000) == Optim(
        updates=400_000,
        lr=0.0005,
        warmup_updates=32_000,
        schedule="linear",
        decay_share=0.2,
        final_share=0.0,
        betas=(0.9, 0.98),
        eps=0.000001,
        weight_decay=0.01,
        decay="matrices",
        clip_norm=10.0,
        max_skip_rate=0.01,
        ema=0.0,
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"updates": 0}, "optim.updates must be at least 1, but is 0"),
        ({"schedule": "wsd", "warmup_updates": 5, "decay_share": 0.6}, "optim.decay_share must .* leave room for the warm-up"),
        ({"schedule": "wsd", "decay_share": 0.0}, r"optim.decay_share must lie in \(0, 1\]"),
        ({"ema": 1.0}, r"optim.ema must lie in \[0, 1\), but is 1.0"),
        ({"warmup_updates": 10}, r"optim.warmup_updates must lie in \[0, optim.updates\), but is 10 of 10"),
        ({"lr": 0.0}, "optim.lr must be a positive number"),
        ({"lr": float("inf")}, "optim.lr must be a positive number"),
        ({"lr": float("nan")}, "optim.lr must be a positive number"),
        ({"clip_norm": -1.0}, "optim.clip_norm must be positive"),
        ({"clip_norm": 0.0}, "optim.clip_norm must be positive"),
        ({"final_share": -0.1}, r"optim.final_share must lie in \[0, 1\]"),
        ({"warmup_updates": -1}, r"optim.warmup_updates must lie in \[0, optim.updates\), but is -1 of 10"),
        ({"schedule": "wsd", "decay_share": 1.1}, r"optim.decay_share must lie in \(0, 1\]"),
        ({"betas": (-0.1, 0.9)}, r"optim.betas must lie in \[0, 1\), but is \[-0.1, 0.9\]"),
        ({"betas": (1.0, 0.9)}, r"optim.betas must lie in \[0, 1\), but is \[1.0, 0.9\]"),
        ({"weight_decay": float("inf")}, "optim.weight_decay must not be negative"),
        ({"final_share": 1.5}, r"optim.final_share must lie in \[0, 1\]"),
        ({"betas": (0.9, 1.0)}, r"optim.betas must lie in \[0, 1\), but is \[0.9, 1.0\]"),
        ({"eps": 0.0}, "optim.eps must be positive"),
        ({"weight_decay": -0.1}, "optim.weight_decay must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Optim(**({"updates": 10, "warmup_updates": 0} | values))


def test_values_at_their_limits_are_allowed():
    Optim(updates=1, warmup_updates=0, final_share=1.0, betas=(0.0, 0.0), weight_decay=0.0, max_skip_rate=1.0)
    Optim(updates=10, warmup_updates=9, final_share=0.0, max_skip_rate=0.0, ema=0.0)
    whole = Optim(updates=10, warmup_updates=5, schedule="wsd", decay_share=0.5)
    assert (whole.decay_updates, Optim(updates=10, warmup_updates=5).decay_updates) == (5, 0)
    assert Optim(updates=3, warmup_updates=0, schedule="wsd", decay_share=0.01).decay_updates == 1
    for name, value in (("max_skip_rate", 1.01), ("max_skip_rate", -0.01), ("ema", -0.1)):
        with pytest.raises(ValueError, match=f"optim.{name} must lie in"):
            Optim(**{"updates": 10, "warmup_updates": 0, name: value})


# --- the skipped update -------------------------------------------------------------------------------------------------


class Twin:
    """A small model with its optimiser, updated as the training module updates."""

    def __init__(self, *, clip_norm: float = 1.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        optim = Optim(updates=100, lr=0.1, warmup_updates=0, final_share=1.0, clip_norm=clip_norm)
        module = TrainingModule(
            self.model,
            optim,
            MaskedPrediction(Loss(), Mixing(), seed=0, updates=100),
            control=Control(),
            on_record=lambda record: None,
            fingerprints={},
            plan_state=dict,
        )
        self.optimizer = module.configure_optimizers()
        self._as_lightning = SimpleNamespace(
            optimizer=self.optimizer, param_groups=self.optimizer.param_groups, step=self.optimizer.step
        )
        self._update = module.update_weights

    def update(self, scale: float) -> float:
        """One update by a gradient of `scale` everywhere, infinite or not a number where it is so; returns its norm."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.model.weight.grad[1, 2] = scale
        return float(self._update(self._as_lightning, 0))

    def state(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*(p.detach() for p in self.model.parameters()), *moments]


@pytest.mark.parametrize("scale", [float("inf"), float("-inf"), float("nan")])
def test_a_skipped_update_leaves_weights_moments_and_step_count_unchanged(scale):
    twin, undisturbed = Twin(), Twin()
    for _ in range(2):
        twin.update(1.0)
        undisturbed.update(1.0)
    before = copy.deepcopy(twin.state())
    assert len(before) == 2 + 2 * 3, "weight and bias, each with two moments and a step count"
    assert not torch.isfinite(torch.tensor(twin.update(scale)))
    assert all(torch.equal(a, b) for a, b in zip(before, twin.state(), strict=True))
    twin.update(2.0)
    undisturbed.update(2.0)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.state(), twin.state(), strict=True))
    assert not torch.equal(before[0], twin.state()[0]), "the update after it must move the weights"


def test_a_skipped_first_update_creates_no_moments_that_count():
    twin, undisturbed = Twin(), Twin()
    twin.update(float("inf"))
    twin.update(1.0)
    undisturbed.update(1.0)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.state(), twin.state(), strict=True))


def test_the_norm_is_that_before_clipping_and_the_gradient_is_clipped_to_its_limit():
    twin = Twin(clip_norm=0.5)
    assert twin.update(1.0) == pytest.approx(15**0.5)
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.model.parameters()])
    assert float(norm) == pytest.approx(0.5, rel=1e-5)
    twin = Twin(clip_norm=100.0)
    twin.update(1.0)
    assert torch.equal(twin.model.weight.grad, torch.ones(3, 4)), "a gradient below the limit stays as it is"
