"""The global step: an objective over the rank's micro-batches, normalised by the units (masked frames, tokens) of all ranks.

Loss of a micro-batch: its loss summed over its units · W / N, with the N units of the whole step; its gradient is averaged over W ranks
(fairseq's rule; the same at every number of processes).
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from openwavlm.batches.batch import MicroBatchId
from openwavlm.batches.loader import StepBatch
from openwavlm.training.control import Control, StepTotals
from openwavlm.training.faults import reach
from openwavlm.training.health.figures import HealthFigures
from openwavlm.training.objective import Objective
from openwavlm.training.optim import Optim
from openwavlm.training.pace import Pace
from openwavlm.training.sharding import fitting_weights, set_gradient_sync, shard_model, state_by_name, state_by_position
from openwavlm.training.skipped_updates import LossScale, SkippedUpdates
from openwavlm.training.sums import StepRecord

_TOLERATED = 5  # fewer unreadable rows give no rate


class TrainingModule(lightning.LightningModule):
    """Lightning's module of a run: one batch is one global step, optimised by hand.

    Args:
        model: Encoder `wavlm` and what reads it.
        objective: The loss of a micro-batch.
        on_record: Called with each finished step's record, one step late.
        logmel_map: Linear map of pre-training's log-mel loss, which no export contains; None without.
        max_skip_rate: Share of rows that may be unreadable before the run stops.
        float16: Whether the loss is scaled (`LossScale`).
        health: Collects figures for the health rules; None = no rules.
        fingerprints, plan_state, health_state, records: For checkpoints: fingerprints of the data, state of the plan at a step, and,
            on rank 0, state of the health rules and of the run's tables.
    """

    def __init__(
        self,
        model: Any,
        optim: Optim,
        objective: Objective,
        *,
        control: Control,
        on_record: Callable[[StepRecord], None],
        logmel_map: nn.Linear | None = None,
        max_skip_rate: float = 1e-3,
        float16: bool = False,
        fingerprints: dict[str, str],
        plan_state: Callable[[int], dict[str, Any]],
        health: HealthFigures | None = None,
        health_state: Callable[[], dict[str, Any] | None] = lambda: None,
        records: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.ema = copy.deepcopy(model).requires_grad_(requires_grad=False) if optim.ema else None
        self.logmel_map = logmel_map
        self.loss_scale = LossScale() if float16 else None
        self.skipped = SkippedUpdates(optim.max_skip_rate)
        self.optim, self.objective = optim, objective
        self.control, self.on_record = control, on_record
        self.max_skip_rate, self._rows, self._unreadable = max_skip_rate, 0.0, 0.0
        self.fingerprints, self.plan_state = fingerprints, plan_state
        self.health, self.health_state, self.records = health, health_state, records
        self.pace = Pace(on_gpu=False)
        self.validation: float | None = None  # the figure by which checkpoints are compared, if this step was validated
        self.totals: StepTotals | None = None
        self._pending: tuple[int, Tensor, Tensor, float, bool, list[tuple[MicroBatchId, Tensor]], Tensor | None] | None = None

    def configure_model(self) -> None:
        """Shards the parameters where the strategy made a device mesh."""
        if self.device_mesh is None:
            return
        # The whole mesh has a dimension for tensors too, so fully_shard would take the first for replicas and shard nothing.
        mesh = self.device_mesh["data_parallel"]
        shard_model(self.model, mesh)
        if self.ema is not None:
            shard_model(self.ema, mesh)
        if self.logmel_map is not None:
            fully_shard(self.logmel_map, mesh=mesh)

    def on_fit_start(self) -> None:
        """Starts the stopwatch: the device is known now."""
        self.pace = Pace(on_gpu=self.device.type == "cuda")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the rate is set at each step."""
        return self.optim.optimizer(self)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Copies without waiting, while Lightning waits for every object that is not a plain tensor."""
        return batch.to(device, non_blocking=True)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Runs one global step."""
        pace, control, last = self.pace, self.control, len(batch.micro_batches) - 1
        pace.begin()
        control.begin(sum(self.objective.units(micro) for micro in batch.micro_batches), batch.digest, pace.own_ms)
        control.note(f"update {batch.step + 1}: forward of the first micro-batch")
        self.flush()
        measured = self.health is not None and self.health.begin(batch.step)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        sums = self.objective.layout.zeros(self.device)
        losses: list[tuple[MicroBatchId, Tensor]] = []
        for number, micro in enumerate(batch.micro_batches):
            with self._gradient_sync(wanted=number == last):
                with pace.forward():
                    outcome = self.objective.outcome(self.model, micro, batch.step, measured=measured)
                if number == 0:
                    self.totals = self._exchange(batch.step)
                assert self.totals is not None
                if number == last:
                    pace.hold()
                    control.note(
                        f"update {batch.step + 1}: backward of the last micro-batch, with the sum of gradients over all ranks"
                    )
                losses.append((micro.id, outcome.main))
                loss = outcome.loss * (micro.weight * control.world_size / max(1, self.totals.units))
                self.manual_backward(loss if self.loss_scale is None else loss * self.loss_scale.scale)
                if outcome.sums is not None:
                    sums += outcome.sums
                    if self.health is not None:
                        self.health.add(outcome.marginal, outcome.features)
        norm = self.update_weights(optimizer, batch.step)
        figures = self.health.end() if self.health is not None else None
        with_unmasked = self.objective.with_unmasked(batch.step)
        self._pending = (batch.step, sums, norm, self.optim.learning_rate(batch.step), with_unmasked, losses, figures)
        pace.end()
        control.note(f"update {batch.step + 1} is done: side jobs, and waiting for the next batch")

    def _exchange(self, step: int) -> StepTotals:
        """Finishes the exchange between ranks."""
        self.control.note(f"update {step + 1}: waiting for the other ranks' {self.objective.unit} and signals")
        self.pace.hold()
        totals = self.control.finish()
        self.pace.go()
        self.control.note(f"update {step + 1}: forward and backward")
        reach("step")
        return totals

    def _gradient_sync(self, *, wanted: bool) -> contextlib.AbstractContextManager:
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel) and not wanted:
            return wrapped.no_sync()
        if self.device_mesh is not None:
            set_gradient_sync(self, wanted=wanted)
        return contextlib.nullcontext()

    def update_weights(self, optimizer: Any, step: int) -> Tensor:
        """Clips the gradient, and updates the weights if its norm is finite; returns the norm before clipping."""
        for group in optimizer.param_groups:
            group["lr"] = self.optim.learning_rate(step) * group.get("scale", 1.0)
            for parameter in group["params"] if step < group.get("held", 0) else ():
                parameter.grad = None  # as if it had none: neither the norm nor the moments know of it
        parameters = [p for p in self.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.loss_scale is not None:
            self.loss_scale.unscale(gradients)
        if self.health is not None:
            self.health.gradients(self)
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # Fused AdamW changes neither parameters nor moments nor its step count where found_inf is 1.
        skipped = (~torch.isfinite(norm)).to(torch.float32)
        optimizer.optimizer.found_inf = skipped
        optimizer.optimizer.grad_scale = None
        optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.update(skipped)
        if self.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - self.optim.ema_decay(step))
        return norm

    def flush(self) -> None:
        """Reads back the last step's figures, which the device has computed by now, and passes the record on."""
        if self._pending is None:
            return
        step, sums, norm, lr, with_unmasked, losses, measured = self._pending
        self._pending = None
        total = self.control.sum((sums if measured is None else torch.cat([sums, measured])).cpu())
        summed = len(self.objective.layout)
        figures = self.objective.layout.named(total[:summed])
        health = self.health.record(total[summed:].numpy()) if self.health is not None and measured is not None else None
        self.on_record(StepRecord(step + 1, figures, float(norm), lr, with_unmasked, health))
        self._check_unreadable(figures)
        self.skipped.check(step + 1, float(norm), losses)

    def _check_unreadable(self, figures: dict[str, float]) -> None:
        self._rows += figures["rows"]
        self._unreadable += figures["unreadable"]
        if self._unreadable > max(_TOLERATED, self.max_skip_rate * self._rows):
            raise ValueError(
                f"{self._unreadable:.0f} of {self._rows:.0f} rows could not be read, more than data.max_skip_rate="
                f"{self.max_skip_rate:g} allows: run openwavlm verify on the shards, restore the files that it names, and start again"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the data's fingerprints and the place in the plan; keys the optimiser's state by name."""
        if self.device_mesh is None:
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [state_by_name(state, self.optim.groups(self)) for state in states]
        checkpoint["openwavlm"] = {
            "format_version": 1,
            "step": self.trainer.global_step,
            "fingerprints": self.fingerprints,
            "plan": self.plan_state(self.trainer.global_step),
            "rows": self._rows,
            "unreadable": self._unreadable,
            "health": self.health_state(),
            "voids": self.skipped.count,
            "records": self.records(),
            "validation": self.validation,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counters; brings weights and the optimiser's state into this model's form."""
        if self.device_mesh is None:
            checkpoint["state_dict"] = fitting_weights(checkpoint["state_dict"], self)
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [state_by_position(state, self.optim.groups(self)) for state in states]
        self._rows, self._unreadable = checkpoint["openwavlm"]["rows"], checkpoint["openwavlm"]["unreadable"]
        self.skipped.count = checkpoint["openwavlm"]["voids"]
