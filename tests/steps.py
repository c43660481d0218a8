"""Global steps made by hand, and a training module that takes them under Lightning, without shards, plan or files."""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import NUM_BANDS
from openwavlm.batches.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.batches.loader import StepBatch
from openwavlm.batches.settings import Mixing
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.training.control import Control, StepTotals
from openwavlm.training.masked_prediction import MaskedPrediction
from openwavlm.training.module import TrainingModule
from openwavlm.training.optim import Optim
from openwavlm.training.settings import Loss
from openwavlm.training.sums import StepRecord

TEMPERATURE = 0.2
CONFIG: dict[str, Any] = {
    "conv_dims": (8, 8, 8),
    "conv_kernels": (80, 5, 4),
    "conv_strides": (20, 4, 4),
    "dim": 16,
    "ffn_dim": 24,
    "heads": 2,
    "layers": 3,
    "positional_kernel": 6,
    "positional_groups": 2,
    "num_buckets": 8,
    "max_distance": 10,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "input_dropout": 0.0,
    "layer_drop": 0.0,
    "feature_grad_mult": 0.25,
}


class Ranks(Control):
    """The exchange of one rank with others that are not there: their masked frames are given, their figures are 0."""

    def __init__(self, world_size: int = 1, masked_elsewhere: int = 0) -> None:
        super().__init__()
        self.world_size, self._elsewhere, self._here = world_size, masked_elsewhere, 0

    def begin(self, units: int, digest: int, own_ms: float = 0.0) -> None:
        """Remembers this rank's masked frames."""
        self._here = units

    def finish(self) -> StepTotals:
        """Adds those of the others."""
        return StepTotals(self._here + self._elsewhere, False, False, False, (0,) * self.world_size)


def mixtures(*columns: tuple[int, ...]) -> MixRecord:
    """A record of mixtures (row, partner, start, start in the partner, length, ratio in dB)."""
    *places, ratios = (torch.tensor(column) for column in zip(*columns, strict=True))
    return MixRecord(*places, ratios.float(), int(places[-1].max()))


def micro_batch(
    index: int,
    samples: Sequence[int],
    *,
    classes: Sequence[int] = (7,),
    layers: int = 3,
    mix: MixRecord | None = None,
    noise: torch.Tensor | None = None,
    identity: MicroBatchId | None = None,
    **values: Any,
) -> PretrainBatch:
    """A micro-batch of noise in rows of `samples`, 0 = not readable; audio, masks and labels are of `index` alone.

    Of the first row's frames the first one is masked and has no label, so that it is in no index.
    """
    generator = torch.Generator().manual_seed(1000 + index)
    num_samples = torch.tensor(samples)
    width = max(samples)
    frames = int(num_frames(torch.tensor(width)))
    valid = torch.arange(width) < num_samples[:, None]
    audio = torch.randint(-9000, 9000, (len(samples), width), generator=generator) + 800  # with a mean
    present = torch.arange(frames) < num_frames(num_samples)[:, None]
    mask = (torch.rand(len(samples), frames, generator=generator) < 0.5) & present
    mask[0, 0] = True
    labelled = present & (torch.arange(present.numel()).view(present.shape) > 0)
    labels = [torch.randint(size, (len(samples), frames), generator=generator).where(labelled, -1).int() for size in classes]
    noise = torch.zeros(0, 400, dtype=torch.int16) if noise is None else noise
    return PretrainBatch(
        waveforms=(audio * valid).to(torch.int16),
        num_samples=num_samples,
        labels=torch.stack(labels),
        mask=mask,
        masked_index=(mask & labelled).flatten().nonzero()[:, 0],
        unmasked_index=(labelled & ~mask).flatten().nonzero()[:, 0],
        layer_keep=torch.arange(layers) != index % layers,
        mix=mix or MixRecord.empty(),
        noise=noise,
        noise_num_samples=torch.full((len(noise),), noise.shape[1]),
        rows=torch.arange(len(samples)),
        start_frame=torch.zeros(len(samples), dtype=torch.int64),
        id=identity or MicroBatchId("speech", 0, 0, index),
        num_unreadable=list(samples).count(0),
        valid_samples=sum(samples),
        **values,
    )


def prepared(micro: PretrainBatch, *, normalised: bool) -> Tensor:
    """Waveforms in float64: mixed by Algorithm 1, with mean energies over whole utterances, and then normalised."""
    clean = [row[:samples].double() / 32768 for row, samples in zip(micro.waveforms, micro.num_samples.tolist(), strict=True)]
    mixed = [row.clone() for row in clean]
    secondaries = [*clean, *(clip.double() / 32768 for clip in micro.noise)]
    record = micro.mix
    columns = (record.row, record.partner, record.start, record.partner_start, record.length, record.energy_ratio_db)
    for row, partner, start, partner_start, length, ratio_db in zip(*(column.tolist() for column in columns), strict=True):
        secondary = secondaries[partner]
        scale = (clean[row].square().mean() / (secondary.square().mean() * 10 ** (ratio_db / 10))).sqrt()
        mixed[row][start : start + length] += scale * secondary[partner_start : partner_start + length]
    padded = torch.zeros(micro.waveforms.shape, dtype=torch.float64)
    for row, waveform in enumerate(mixed):
        if normalised and len(waveform):
            waveform = (waveform - waveform.mean()) / (waveform.square().mean() - waveform.mean().square() + 1e-5).sqrt()
        padded[row, : len(waveform)] = waveform
    return padded


def log_probabilities(frames: Tensor, projection: torch.nn.Linear, embeddings: Tensor, index: Tensor) -> Tensor:
    """Log-softmax of cos(A h, e_c) / τ over the label embeddings e_c (HuBERT Eq. 3)."""
    projected = frames[index] @ projection.weight.T + projection.bias
    cosines = (projected @ embeddings.T) / (projected.norm(dim=1)[:, None] * embeddings.norm(dim=1)[None, :])
    logits = cosines / TEMPERATURE
    return logits - logits.exp().sum(1, keepdim=True).log()


def model(classes: Sequence[int] = (7,), *, special_rows: int = 0, seed: int = 5, **config: Any) -> WavLMForPretraining:
    """A model of a few thousand parameters, none of them at a value where a mistake would not show."""
    torch.manual_seed(seed)
    made = WavLMForPretraining(
        WavLM(WavLMConfig(**CONFIG | config)),
        Head(final_dim=5, logit_temperature=TEMPERATURE, special_rows=special_rows),
        num_classes=list(classes),
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "relative_bias" in name:
                parameter.normal_()
            elif "gate" in name or parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def training_module(
    learner: WavLMForPretraining,
    *,
    optim: Optim | None = None,
    loss: Loss | None = None,
    control: Control | None = None,
    records: list[StepRecord] | None = None,
    mixing: Mixing | None = None,
    seed: int = 3,
    **values: Any,
) -> TrainingModule:
    """The module as `train` makes it; finished records go to `records`, further values to the objective or the module."""
    records = [] if records is None else records
    optim, loss = optim or Optim(updates=20, warmup_updates=0, clip_norm=1e9), loss or Loss()
    logmel_map = torch.nn.Linear(learner.wavlm.config.conv_dims[-1], NUM_BANDS) if loss.logmel else None
    chosen = {name: values.pop(name) for name in ("target_weights", "unmasked_every") if name in values}
    objective = MaskedPrediction(loss, mixing or Mixing(), seed=seed, updates=optim.updates, logmel_map=logmel_map, **chosen)
    return TrainingModule(
        learner,
        optim,
        objective,
        control=control or Ranks(),
        on_record=records.append,
        logmel_map=logmel_map,
        fingerprints={},
        plan_state=lambda step: {},
        **values,
    )


def fit(module: TrainingModule, steps: Sequence[StepBatch], callback: lightning.Callback | None = None, **fitting: Any) -> Any:
    """Trains on the steps, one update each, and reads back the last one's figures; returns Lightning's trainer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=len(steps) + fitting.pop("done", 0),
            limit_val_batches=0,
            callbacks=[callback] if callback else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(list(steps), batch_size=None, collate_fn=lambda step: step), **fitting)
    module.flush()
    return trainer
