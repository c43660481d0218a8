"""Validation figures against counts by hand: sums over micro-batches and ranks, baselines without audio, padding, eval mode."""

import copy
import math

import numpy as np
import pytest
import torch

from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import Loading
from openwavlm.training.validation import Evaluation, unigram_log_prob
from steps import Ranks, log_probabilities, micro_batch, mixtures, model, prepared

CLASSES = (7, 4, 5)
COUNTS = [np.array([5, 0, 3, 9, 9, 1, 0]), np.array([1, 2, 3, 4]), np.array([8, 0, 2, 2, 1])]


class Batches:
    """Stands in the builder's place; remembers what was asked for."""

    def __init__(self, classes: tuple[int, ...]) -> None:
        noise = torch.zeros(0, 400, dtype=torch.int16)
        self.made = [
            micro_batch(0, [4000, 2900], classes=classes, mix=mixtures((0, 1, 900, 100, 1800, 3)), noise=noise),
            micro_batch(1, [6100, 0, 3300], classes=classes),
            micro_batch(2, [2500], classes=classes),
        ]
        self.asked: list[tuple[int, float]] = []

    def __getitem__(self, spec: MicroBatchSpec):
        self.asked.append((spec.id.index, spec.weight))
        made = copy.copy(self.made[spec.id.index])
        object.__setattr__(made, "weight", spec.weight)
        return made


def evaluation(batches: Batches, sets: int, control: Ranks) -> Evaluation:
    none = np.zeros(0, dtype=np.int64)
    specs = [MicroBatchSpec(made.id, none, none, none) for made in batches.made]
    return Evaluation(specs, batches, Loading(workers=0), COUNTS[:sets], control)


def test_the_unigram_is_smoothed_by_one_and_its_guess_is_the_commonest_label():
    counts = np.array([5, 0, 3, 9, 9, 1, 0])
    assert Evaluation([], Batches(CLASSES), Loading(workers=0), [counts], Ranks())._commonest == 3
    assert np.exp(unigram_log_prob(counts)) == pytest.approx(np.array([6, 1, 4, 10, 10, 2, 1]) / 34)


def expected_figures(learner, batches: Batches, sets: int, *, normalised: bool) -> dict[str, float]:
    """Frame by frame in float64, without the mixtures."""
    exact = copy.deepcopy(learner).double().eval()
    heads = [(exact.final_proj, exact.label_embeddings)]
    heads += [(head.final_proj, head.label_embeddings) for head in exact.other_heads]
    sums: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value

    for micro in batches.made:
        clean = copy.copy(micro)
        object.__setattr__(clean, "mix", mixtures((0, 0, 0, 0, 0, 0)))
        with torch.no_grad():
            encoded = exact.wavlm(prepared(clean, normalised=normalised), micro.num_samples, mask=micro.mask)
        every = torch.arange(micro.mask.numel())
        found = [log_probabilities(encoded.final.flatten(0, 1), *head, every).detach() for head in heads]
        width = micro.mask.shape[1]
        for row in range(len(micro.mask)):
            for frame in range(width):
                place, label = row * width + frame, int(micro.labels[0, row, frame])
                if label < 0:
                    continue
                if not micro.mask[row, frame]:
                    add("seen", 1)
                    add("seen_correct", int(found[0][place].argmax()) == label)
                    continue
                add("masked", 1)
                add("correct", int(found[0][place].argmax()) == label)
                add("loss", -float(found[0][place, label]))
                add("unigram_loss", -math.log((COUNTS[0][label] + 1) / (COUNTS[0].sum() + 7)))
                add("unigram_correct", label == 3)
                known = [f for f in range(width) if not micro.mask[row, f] and micro.labels[0, row, f] >= 0]
                guess = int(micro.labels[0, row, min(known, key=lambda f: (abs(f - frame), f))]) if known else -1
                add("nearest", guess == label)
                for other in range(1, sets):
                    label = int(micro.labels[other, row, frame])
                    add(f"correct_{other + 1}", int(found[other][place].argmax()) == label)
                    add(f"loss_{other + 1}", -float(found[other][place, label]))
                    add(
                        f"unigram_loss_{other + 1}",
                        -math.log((COUNTS[other][label] + 1) / (COUNTS[other].sum() + CLASSES[other])),
                    )
    masked = sums["masked"]
    figures = {
        "cross_entropy": sums["loss"] / masked,
        "accuracy": sums["correct"] / masked,
        "unigram_cross_entropy": sums["unigram_loss"] / masked,
        "unigram_accuracy": sums["unigram_correct"] / masked,
        "repeat_nearest_accuracy": sums["nearest"] / masked,
        "masked_frames": masked,
        "unmasked_accuracy": sums["seen_correct"] / sums["seen"],
    }
    for other in range(2, sets + 1):
        figures |= {
            f"cross_entropy_{other}": sums[f"loss_{other}"] / masked,
            f"accuracy_{other}": sums[f"correct_{other}"] / masked,
        }
        figures |= {f"unigram_cross_entropy_{other}": sums[f"unigram_loss_{other}"] / masked}
    return figures


@pytest.mark.parametrize(("sets", "normalised"), [(1, False), (1, True), (2, False), (3, False)])
def test_the_figures_are_means_over_the_masked_frames_of_clean_audio(sets, normalised):
    learner = model(
        CLASSES[:sets], seed=9, normalise_waveform=normalised, dropout=0.5, input_dropout=0.5, attention_dropout=0.5
    ).train()
    batches = Batches(CLASSES[:sets])
    found = evaluation(batches, sets, Ranks()).run(learner, torch.device("cpu"))
    expected = expected_figures(learner, batches, sets, normalised=normalised)
    assert found.keys() == expected.keys() and isinstance(found["masked_frames"], int)
    for name, value in expected.items():
        assert 0 < value == pytest.approx(found[name], rel=1e-5), name
    assert learner.training and all(part.training for part in learner.modules()), "training goes on as it was"
    assert batches.asked == [(0, 1.0), (1, 1.0), (2, 1.0)]


def test_a_model_in_evaluation_mode_stays_in_it():
    learner = model().eval()
    evaluation(Batches((7,)), 1, Ranks()).run(learner, torch.device("cpu"))
    assert not learner.training


class OneOf(Ranks):
    """A rank whose sums are kept instead of exchanged."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(world_size)
        self.rank = rank
        self.own: torch.Tensor = torch.zeros(0)

    def sum(self, vector: torch.Tensor) -> torch.Tensor:
        """Keeps them."""
        self.own = vector.clone()
        return vector


@pytest.mark.parametrize(("world_size", "asked"), [(2, [[0, 2], [1, 0]]), (3, [[0], [1], [2]]), (5, [[0], [1], [2], [0], [0]])])
def test_ranks_share_the_micro_batches_and_padding_counts_for_nothing(world_size, asked):
    learner, sums = model(), []
    alone = OneOf(0, 1)
    evaluation(Batches((7,)), 1, alone).run(learner, torch.device("cpu"))
    for rank in range(world_size):
        batches, control = Batches((7,)), OneOf(rank, world_size)
        evaluation(batches, 1, control).run(learner, torch.device("cpu"))
        assert [index for index, _ in batches.asked] == asked[rank]
        assert [weight for _, weight in batches.asked] == [float(n * world_size + rank < 3) for n in range(len(asked[rank]))]
        sums.append(control.own)
    torch.testing.assert_close(torch.stack(sums).sum(0), alone.own, rtol=1e-12, atol=0)
