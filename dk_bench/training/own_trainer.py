"""Shared by our Lightning modules, so that any `pl.Trainer`, `dk-bench train`'s or a user's own, trains as the
configuration says, or says at once why it would not."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning import callbacks
from pytorch_lightning.plugins import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dk_bench.config import RunConfig
from dk_bench.data.order import mix_seed
from dk_bench.errors import UserError
from dk_bench.processes import interrupts
from dk_bench.reference.checks import NotFinite
from dk_bench.training.checkpoint import states_of_callbacks
from dk_bench.training.sharded import Sharded, bare_copy, check_sharded
from dk_bench.training.task import some_of
from dk_bench.training.weights import to_lightning_names, to_own_names

# Callbacks that change what the configuration gives -> what to do instead.
REFUSED_CALLBACKS = {
    callbacks.LearningRateFinder: "it gives all parameters one learning rate, those that make offsets too; set the "
    "learning rate in the configuration and compare runs",
    callbacks.BatchSizeFinder: "the batch is the configuration's, and so is the learning rate that goes with it; "
    "set it there",
    callbacks.StochasticWeightAveraging: "it puts one learning rate in place of the schedule, for offsets too; "
    "EMAWeightAveraging averages and leaves learning rates alone",
    callbacks.GradientAccumulationScheduler: "the schedule needs steps of one size; give "
    "Trainer(accumulate_grad_batches=N)",
    callbacks.BaseFinetuning: "the schedule does not move parameters that are added later; freeze them before "
    "training, or none",
}

CURRENT = "current_model_state"  # in checkpoints: what training goes on with, beside Lightning's average of the weights
LOSSES = "losses"  # in checkpoints: the sums that an epoch's mean loss is made of so far, of every process
_SUMS = ("mean_value", "weight")  # as `MeanMetric` calls them


class Diverged(Exception):
    """The loss is not finite any more; training on would only cost time."""


class ConfiguredModule(pl.LightningModule):
    """A module that is trained as its configuration says, over the configuration's epochs.

    A subclass has ``model``, the hyperparameters ``config`` (plain data), ``classes`` and ``run_id``, and Lightning's
    steps, where it gives its losses to `check_loss` and `add_loss`. ``task`` is the name of its `Task`, ``run`` the
    part of the configuration that every task has.
    """

    task: str
    run: RunConfig
    train_loss: MeanMetric
    hits: Mapping[str, np.ndarray] = {}  # of each evaluated set, which images were told rightly: (images,) bool
    bare: tuple[nn.Module, ...] = ()  # the model's names and shapes, where its parameters are about to be split
    _goes_on = False  # whether this fit begins at a checkpoint
    _stop_signal = 0  # the number of the signal on which several processes agreed; 0: none
    _last_loss: tuple[Callable[[], float], str] | None = None  # not looked at yet, and its step in words

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Reads a module as Lightning does, with the checkpoint's weights; those before training need not be there."""
        return super().load_from_checkpoint(checkpoint_path, *args, **{"initial_weights": False, **kwargs})

    def check_trainer(self, epochs: int, key: str) -> None:
        """Raises UserError before a fit over ``epochs``, which ``key`` of the configuration gives, for the first
        setting of the trainer that would make other figures than the configuration's: to be called in ``setup``."""
        self._goes_on, self._last_loss, self._stop_signal = False, None, 0
        _check_settings(self.trainer, epochs, key)
        self.bare = (bare_copy(self.model),) if isinstance(self.trainer.strategy, Sharded) else ()

    def check_classes(self, classes: list[str]) -> None:
        """Raises UserError for data of other classes than the module was made for."""
        if classes != list(self.hparams.classes):
            raise UserError(
                f"the module was made for {some_of(self.hparams.classes)}, but the images are of {some_of(classes)}: "
                f"expected {type(self).__name__}(..., classes=data.classes)"
            )

    def learning_rate(self) -> float:
        """Returns the weights' learning rate for the next step."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def seed_step(self, seed: int) -> None:
        """Seeds what a step of training may draw from."""
        torch.manual_seed(seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_last_loss()
        checkpoint["task"] = self.task
        to_own_names(checkpoint)
        checkpoint[LOSSES] = self._gathered(torch.stack([getattr(self.train_loss, name) for name in _SUMS])).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._goes_on = True
        to_lightning_names(checkpoint)
        if self._trainer is not None and LOSSES in checkpoint:  # older checkpoints have the first process's alone
            sums = _of_process(checkpoint[LOSSES], self.global_rank, self.trainer.world_size)
            own = {f"train_loss.{name}": value for name, value in zip(_SUMS, sums, strict=True)}
            # Of an averaged run the module's is the current state, and the average's sums stay as they are.
            (checkpoint.get(CURRENT) or checkpoint["state_dict"]).update(own)
        if self._trainer is not None and self.trainer.precision == "64-true":
            self.double()  # Lightning does so later, when the weights would have gone through float32
        if "callbacks" in checkpoint:  # Lightning restores them after the module
            checkpoint["callbacks"] = states_of_callbacks(checkpoint)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes all that is drawn at random a function of (seed, batch, rank): resuming needs no generators' state."""
        if batch_idx == 0:  # Lightning calls no on_train_epoch_start where it goes on from an epoch's last batch
            self.train_loss.reset()
        self.seed_step(mix_seed(self.run.seed, self.batches_before(batch_idx), self.global_rank))

    def batches_before(self, batch_idx: int, epoch: int | None = None) -> int:
        """Counts the batches before one of an epoch, by default of this: without accumulated gradients its step."""
        return (self.current_epoch if epoch is None else epoch) * int(self.trainer.num_training_batches) + batch_idx

    def on_train_epoch_end(self) -> None:
        self.check_last_loss()
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()

    def on_validation_epoch_start(self) -> None:
        """Gives all processes the first one's running statistics, which are a checkpoint's, so that all evaluate the
        same model. In training DDP does so before every step."""
        self.check_last_loss()
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")

    def on_fit_start(self) -> None:
        """Raises UserError for a trainer that has trained before, unless it goes on from a checkpoint."""
        if self.trainer.global_step and not self._goes_on:
            raise UserError(
                f"the Trainer is at step {self.trainer.global_step} of an earlier fit, and a schedule begins at 0: "
                "expected a new Trainer, or trainer.fit(..., ckpt_path=...) to go on from a checkpoint"
            )

    def optimizer_steps(self) -> int:
        """Counts the optimiser steps of an epoch under this trainer: one every ``accumulate_grad_batches`` batches, and
        one at the end. Raises UserError for a loader of unknown length."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(self.trainer.num_training_batches):
            raise UserError(
                "the training loader does not say how many batches it has, which the learning rate's schedule needs: "
                "expected one with a length, or Trainer(limit_train_batches=N)"
            )
        return total // self.trainer.max_epochs

    def check_loss(self, loss: Tensor) -> None:
        """Raises Diverged on every process where one's training loss is not finite: it alone must not leave the others
        waiting for its gradients.

        One process on a GPU learns a step later, as this step's loss comes while the next is on its way: asked at
        once, the GPU would run dry. `check_last_loss` asks for the last one.
        """
        if _is_late(loss) and self.trainer.world_size == 1:
            self.check_last_loss()
            self._last_loss = _on_its_way(loss.detach()), self.when()
            return
        finite = bool(torch.isfinite(loss))
        if not self._agree(finite):
            what = "not finite on another device" if finite else loss.item()
            raise Diverged(f"training loss is {what} {self.when()}")

    def agree_to_stop(self) -> int | None:
        """Tells the number of the signal by which this process, or another one of its run, was asked to stop; the same
        in all of them, which must all ask."""
        self._agree()
        return self.asked_to_stop()

    def asked_to_stop(self) -> int | None:
        """Tells what `agree_to_stop` would have told when the processes checked their last loss."""
        return interrupts.noted() if self.trainer.world_size == 1 else self._stop_signal or None

    def _agree(self, finite: bool = True) -> bool:
        """Tells whether it is ``finite`` in all processes, and takes note of the signal that one of them has noted: by
        one operation between them, as every step has one of these."""
        if self.trainer.world_size == 1:
            return finite
        strategy = self.trainer.strategy
        own = torch.tensor([not finite, interrupts.noted() or 0], dtype=torch.int64, device=strategy.root_device)
        not_finite, self._stop_signal = strategy.reduce(own, reduce_op="max").tolist()
        return not not_finite

    def _gathered(self, own: Tensor) -> Tensor:
        """Returns a tensor of every process's, in their order: (processes, ...)."""
        return self.all_gather(own) if self.trainer.world_size > 1 else own[None]

    def check_last_loss(self) -> None:
        """Raises Diverged for a loss that `check_loss` has not looked at yet: before a checkpoint holds its step."""
        if self._last_loss is not None:
            (arrived, when), self._last_loss = self._last_loss, None
            if not math.isfinite(loss := arrived()):
                raise Diverged(f"training loss is {loss} {when}")

    def or_diverged(self, call: Callable[[], Any]) -> Any:
        """Returns the call's result. Raises Diverged where an operator refuses NaN offsets, before there is a loss."""
        learns = torch.is_grad_enabled()
        try:
            # A trainer may evaluate in inference mode, in which operators' errors have no type, see NotFinite.
            with torch.inference_mode(False), torch.set_grad_enabled(learns):
                return call()
        except NotFinite as error:
            raise Diverged(f"{error} {self.when()}") from error

    def when(self) -> str:
        """Returns the step, in words."""
        return f"at step {self.global_step} (epoch {self.current_epoch})"


def mean_of_losses() -> MeanMetric:
    """Returns a mean of losses that `ConfiguredModule.check_loss` has seen: it does not look for NaN, for which a GPU
    would have to be waited for in every step."""
    metric = MeanMetric(nan_strategy="disable")
    metric.persistent(True)  # a run resumed in mid-epoch goes on with the mean of the steps before
    return metric


def add_loss(mean: MeanMetric, loss: Tensor, images: int) -> None:
    """Adds the loss of a step over so many images. A plain number would be copied to the GPU, which waits for it."""
    mean.update(loss.detach(), torch.full((), float(images), device=loss.device))


def _of_process(sums: Tensor, number: int, processes: int) -> Tensor:
    """Returns a process's part of what a checkpoint holds of every process, (processes then, sums): its own, or, among
    another number than then, their mean, as a step adds as much to each of them however many they are."""
    return sums[number] if len(sums) == processes else sums.mean(0)


def check_same_steps(held: int | None, now: int, words: str, same: str) -> None:
    """Raises UserError where a checkpoint to go on from counted other steps than this run does; an older one may not
    say. ``words`` says what steps, ``same`` what makes them."""
    if held not in (None, now):
        raise UserError(f"the checkpoint to go on from has {held} {words}, this run {now}: expected the same {same}")


def _is_late(loss: Tensor) -> bool:
    return loss.is_cuda


def _on_its_way(loss: Tensor) -> Callable[[], float]:
    """Starts copying a loss from the GPU; what is returned waits for it."""
    copy = loss.to("cpu", non_blocking=True)
    event = torch.cuda.current_stream(loss.device).record_event()

    def arrived() -> float:
        event.synchronize()
        return copy.item()

    return arrived


def _check_settings(trainer: pl.Trainer, epochs: int, key: str) -> None:
    for callback in trainer.callbacks:
        for kind, instead in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"callback {type(callback).__name__}: {instead}")
    strategy = trainer.strategy
    known = SingleDeviceStrategy | DDPStrategy | Sharded
    if not isinstance(strategy, known) or isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            f"Trainer(strategy={type(strategy).__name__}), expected 'ddp', one of its variants, one device or "
            "dk_bench.training.sharded.Sharded(): others split the parameters, whose learning rate and weight decay go "
            "by their names and shapes"
        )
    if isinstance(strategy, Sharded):
        check_sharded(trainer)
    if isinstance(getattr(strategy, "_layer_sync", None), TorchSyncBatchNorm):
        raise UserError(
            "Trainer(sync_batchnorm=True) drops the activations inside timm's layers: expected "
            "Trainer(plugins=[dk_bench.training.batch_norm.SharedBatchNorm()])"
        )
    if trainer.fast_dev_run:  # a few steps, which end nowhere
        return
    if trainer.max_epochs != epochs:
        raise UserError(
            f"Trainer(max_epochs={trainer.max_epochs}), but key '{key}' is {epochs}, which its schedule of "
            "learning rates is made for: expected the same number"
        )
    if trainer.max_steps != -1:
        raise UserError(
            f"Trainer(max_steps={trainer.max_steps}), expected none: training lasts the epochs of key '{key}', {epochs}"
        )
