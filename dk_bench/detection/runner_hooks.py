"""mmengine's and mmdet's own hooks that change training, called where mmengine's runner calls them."""

import logging
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn

from dk_bench.detection.hook_names import ACTING, hooks_of, name_of
from dk_bench.detection.mmengine_config import DetectionConfig, build, quiet
from dk_bench.errors import UserError

AVERAGE = "ema_state_dict"  # where mmengine's checkpoints, and so ours, have what is not in ``state_dict``
IN_THE_DATA = {"PipelineSwitchHook"}  # see `stages`


class RunnerHooks(Callback):
    """Does in training what ``custom_hooks`` of a configuration ask for, by the hooks themselves.

    EMAHook averages weights: the average is validated, is what ``state_dict`` of a checkpoint holds, and what the model
    holds when training has ended; the weights that training goes on with are in ``ema_state_dict``, as mmengine has it.

    `begin_iteration` and the methods of checkpoints are for the module, the others for Lightning.
    """

    def __init__(self, config: DetectionConfig) -> None:
        self.config, self.hooks = config, []
        self.settings = [(k, one) for k, one in hooks_of(config.cfg, ACTING) if name_of(one) not in IN_THE_DATA]
        averages = [one for _, one in self.settings if name_of(one) == "EMAHook"]
        self.averages = bool(averages)
        if len(averages) > 1:
            raise UserError("key 'custom_hooks' has two EMAHooks, expected one average")
        self._runner, self._epoch, self._is_swapped = SimpleNamespace(), None, False

    def begin(self, model: nn.Module, iterations: int) -> None:
        """Makes the hooks for a fit of so many iterations. Raises UserError for settings that make none."""
        loop, images = self.config.loop, SimpleNamespace(update_skip_type_keys=lambda skipped: None)  # see `stages`
        self._epoch, self._is_swapped = None, False
        self._runner = SimpleNamespace(
            model=model,
            iter=0,
            epoch=0,
            max_iters=iterations,
            max_epochs=1 if loop.by_iterations else loop.length,
            train_dataloader=SimpleNamespace(dataset=images),
            logger=logging.getLogger(__name__),
            _resume=True,
        )
        self.hooks = [self._made(key, settings) for key, settings in self.settings]

    def begin_iteration(self, iteration: int, epoch: int) -> None:
        """Tells hooks and the parts of mmdet that ask for it where training is, when a batch begins."""
        runner = self._runner
        runner.iter, runner.epoch = iteration, 0 if self.config.loop.by_iterations else epoch
        hub = MessageHub.get_current_instance()
        for name in ("iter", "epoch", "max_iters", "max_epochs"):
            hub.update_info(name, getattr(runner, name))
        if runner.epoch != self._epoch:  # also where a run goes on inside an epoch
            self._epoch = runner.epoch
            self._call("before_train_epoch")

    def end_iteration(self) -> None:
        """Lets hooks act when the iteration that began last is done."""
        self._call("after_train_iter", self._runner.iter)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if average := self._average:
            model = average.ema_model.to(pl_module.device)
            whole, own = model.update_buffers, model.module  # it has held on to the tensors from before
            model.avg_parameters = own.state_dict() if whole else dict(own.named_parameters())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap("before_val_epoch", to=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap("after_val_epoch", to=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap("before_test_epoch", to=True)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Puts the averaged weights into a checkpoint that has the model's own names."""
        if not (average := self._average):
            return
        average.before_save_checkpoint(self._runner, checkpoint)
        if self._is_swapped:  # the model itself has the average now
            average._swap_ema_state_dict(checkpoint)
        if "optimizer_states" not in checkpoint:  # weights alone: nobody goes on from them
            del checkpoint[AVERAGE]

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Takes average and weights apart, of a checkpoint to go on from that has the model's own names. Raises
        UserError for one of a run that averaged none where this one does, and the other way round."""
        average, is_there = self._average, AVERAGE in checkpoint
        if is_there != bool(average):
            held, expected = ("averaged", "an EMAHook in") if is_there else ("no averaged", "no EMAHook in")
            raise UserError(
                f"the checkpoint to go on from holds {held} weights: expected {expected} key 'custom_hooks'"
            )
        if average:
            average.after_load_checkpoint(self._runner, checkpoint)

    @property
    def _average(self) -> EMAHook | None:
        return next((hook for hook in self.hooks if isinstance(hook, EMAHook)), None)

    def _made(self, key: str, settings: dict[str, Any]) -> Hook:
        settings.pop("priority", None)
        hook = build(HOOKS, settings, key)
        try:
            with quiet():
                hook.before_run(self._runner)
                hook.before_train(self._runner)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"key '{key}' ({name_of(settings)}) cannot be used: {text[:600]}") from error
        return hook

    def _swap(self, method: str, *, to: bool) -> None:
        """Calls a method of the hooks that exchanges weights and average; ``to``: the model has the average then."""
        if self._is_swapped != to:
            self._call(method)
            self._is_swapped = to

    @torch.no_grad()
    def _call(self, method: str, *arguments: Any) -> None:
        for hook in self.hooks:
            getattr(hook, method)(self._runner, *arguments)
