"""Faults that a training can have, planted before it starts: each breaks one health rule."""

from collections.abc import Callable

import numpy as np
import torch


def each_batch(change: Callable) -> None:
    from openwavlm.batches.collate import MicroBatchBuilder

    real = MicroBatchBuilder.__getitem__
    MicroBatchBuilder.__getitem__ = lambda self, spec: change(real(self, spec))


def each_step(change: Callable) -> None:
    from openwavlm.training.module import TrainingModule

    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        change(self, batch.step)
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step


def labels_shuffled() -> None:
    generator = np.random.default_rng(0)

    def shuffle(batch):
        labels = batch.labels.numpy()
        known = labels >= 0
        labels[known] = generator.permutation(labels[known])
        return batch

    each_batch(shuffle)


def wrong_initialisation() -> None:
    from openwavlm.model.wavlm import WavLM

    real = WavLM.initialise

    @torch.no_grad()
    def initialise(self):
        real(self)
        self.mask_embedding.mul_(100)  # what is hidden drowns what is seen

    WavLM.initialise = initialise


def collapsed_embeddings() -> None:
    from openwavlm.model import pretraining

    real = pretraining.cosine_logits
    # All frames lie next to one label's embedding, whatever they are.
    pretraining.cosine_logits = lambda *arguments: real(*arguments) + 40 * torch.eye(1, arguments[1].shape[0])


def labels_of_one_byte_lost(kept: int) -> None:
    def cut(batch):
        batch.labels.clamp_(max=kept)
        return batch

    each_batch(cut)


def labels_of_noise(classes: int) -> None:
    generator = np.random.default_rng(0)

    def draw(batch):
        labels = batch.labels.numpy()
        known = labels >= 0
        labels[known] = generator.integers(0, classes, int(known.sum()))
        return batch

    each_batch(draw)


def hidden_and_seen_exchanged() -> None:
    from openwavlm.model.wavlm import WavLM

    real = WavLM.forward

    def forward(self, waveforms, *arguments, mask=None, **named):
        return real(self, waveforms, *arguments, mask=None if mask is None else ~mask, **named)

    WavLM.forward = forward


def blocked_layer() -> None:
    def block(module, step):
        if step == 0:
            for parameter in module.model.wavlm.encoder.layers[1].parameters():
                parameter.register_hook(lambda gradient: 0 * gradient)

    each_step(block)


def growing_gradient(first_step: int) -> None:
    grown = [1.0]

    def grow(module, step):
        if step == 0:
            for parameter in module.model.final_proj.parameters():
                parameter.register_hook(lambda gradient: grown[0] * gradient)
        grown[0] = 1000.0 if step >= first_step else 1.0

    each_step(grow)


def dead_channels() -> None:
    from openwavlm.model.wavlm import WavLM

    real = WavLM._features

    def features(self, *arguments):
        made = real(self, *arguments)
        alive = torch.arange(made.shape[1]) < 3 * made.shape[1] // 4
        return made * alive[:, None]

    WavLM._features = features


def infinite_gradients() -> None:
    from openwavlm.training import masked_prediction as module

    real, calls = module.micro_batch_loss, [0]

    def loss(*arguments, **named):
        calls[0] += 1
        return real(*arguments, **named) * (float("nan") if calls[0] % 30 == 5 else 1.0)

    module.micro_batch_loss = loss


def hand_in_clock(*, seconds_an_update: Callable[[int], float], seconds_a_batch: float = 0.0) -> None:
    """Puts a clock that only updates and the loader move in place of the machine's, on which no other program runs."""
    from openwavlm.batches import loader
    from openwavlm.runs import assemble
    from openwavlm.training.health import core_wait

    now, fetch = [0.0], loader.micro_batch_loader

    def fetched(*arguments):
        for batch in fetch(*arguments):
            now[0] += seconds_a_batch
            yield batch

    def clocked(real):
        return lambda *arguments, **named: real(*arguments, **named, now=lambda: now[0])

    def advance(module, step):
        now[0] += seconds_an_update(step)

    loader.micro_batch_loader = fetched
    assemble.StepLoader, assemble.WallClock = clocked(assemble.StepLoader), clocked(assemble.WallClock)
    core_wait.CoreWait.lap = lambda self: 0.0
    each_step(advance)


def steady_clock() -> None:
    hand_in_clock(seconds_an_update=lambda step: 1.0)


def slow_loader(seconds: float = 0.7) -> None:
    hand_in_clock(seconds_an_update=lambda step: 1.0, seconds_a_batch=seconds)


def slower_updates(first_step: int) -> None:
    hand_in_clock(seconds_an_update=lambda step: 4.0 if step >= first_step else 1.0)


def unreadable_rows() -> None:
    from openwavlm.shards.reader import ShardReader, UnreadableAudio

    real = ShardReader.read

    def read(self, row, *rest, **named):
        if row % 4 == 1:
            raise UnreadableAudio("it is gone")
        return real(self, row, *rest, **named)

    ShardReader.read = read


def nothing() -> None:
    pass
