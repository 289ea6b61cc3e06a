"""The Lightning module of detection: any detector of mmdet, its losses, and COCO's average precision."""

import copy
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
from mmdet.models import BatchSyncRandomResize
from mmdet.registry import MODELS
from mmengine.config import Config as MMConfig
from mmengine.model.utils import revert_sync_batchnorm
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from dk_bench.detection import backbone
from dk_bench.detection.data import DetectionData, seed_all
from dk_bench.detection.hook_names import check_devices
from dk_bench.detection.known_types import check_types
from dk_bench.detection.metrics import prediction_of, score
from dk_bench.detection.mmengine_config import PRECISIONS, build, config_from_values, quiet, use_scope
from dk_bench.detection.mmengine_files import add_for_mmengine
from dk_bench.detection.precision import check_validation, is_needed, keep_single
from dk_bench.detection.recipe import build_schedules, build_wrapper, clip_gradients
from dk_bench.detection.runner_hooks import RunnerHooks
from dk_bench.detection.task import Detection
from dk_bench.errors import UserError, located, some
from dk_bench.training.own_trainer import ConfiguredModule, add_loss, check_same_steps, mean_of_losses
from dk_bench.training.sharded import Sharded
from dk_bench.training.weights import read_plain, weights_in

CLASSLESS = ("rpn_head", "semantic_head")  # tell objects from background, or stuff
OF_THE_START = ("init_cfg", "checkpoint", "pretrained")  # settings of mmdet's modules and ours that name weights


class LitDetector(ConfiguredModule):
    """Trains what ``model`` of an mmengine configuration describes, as mmdet's runner does, on `DetectionData`.

    Logs ``train/loss`` (mean over an epoch's images), ``val/mAP``, ``val/mAP_50``, ``val/mAP_75``, ``val/mAP_s``,
    ``val/mAP_m`` and ``val/mAP_l`` in percent (NaN where there is nothing to find), and for loggers the parts of the
    loss; ``trainer.test`` logs the same as ``test/...``, ``trainer.predict`` gives mmdet's predictions. The arguments
    are plain data and stand in checkpoints: ``config`` as `DetectionConfig.to_dict` gives it, the classes' names in
    order of their labels, and the run's name for loggers. Without ``initial_weights``, which is not in checkpoints, no
    weights to start from are read: a checkpoint's will follow.

    Raises UserError from building the model and for a trainer that would train otherwise than the configuration says,
    see `dk_bench.training.own_trainer`; Diverged from a step whose loss is not finite, on every process.
    """

    task = Detection.name

    def __init__(
        self, config: dict[str, Any], classes: list[str], run_id: str = "", *, initial_weights: bool = True
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["initial_weights"], logger=False)
        self.config = config_from_values(config)
        self.run, self.loop, cfg = self.config.run, self.config.loop, self.config.cfg
        use_scope(cfg)  # before anything is looked up by its name
        self.model = build_detector(cfg, initial_weights=initial_weights)
        check_num_classes(self.model, classes)
        if self.config.run.trainer.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.train_loss = mean_of_losses()
        self._predictions: dict[int, dict[str, Tensor]] = {}
        self.hooks = RunnerHooks(self.config)

    def configure_callbacks(self) -> list[Callback]:
        """Returns what ``custom_hooks`` do, so that any trainer has it."""
        return [self.hooks] if self.hooks.settings else []

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        """Moves the preprocessor's idea of where it is as well: only its own ``to``, not its parent's, changes that."""
        super()._apply(fn, recurse)
        self.model.data_preprocessor.to(next(self.model.parameters()).device)
        return self

    def forward(self, batch: dict[str, Any]) -> list[Any]:
        """Returns mmdet's predictions, DetDataSamples in coordinates of the original images, of a collated batch."""
        return self.model(**self.model.data_preprocessor(batch, False), mode="predict")

    def setup(self, stage: str) -> None:
        """Replaces synchronised batch normalisation, which needs several processes, on one, as mmengine does. Raises
        UserError for a trainer or data that do not go with the configuration."""
        if stage == "fit":
            self.check_trainer(self.loop.epochs, self.loop.key)
            self._check_settings()
        if stage != "predict":
            self._check_data()
        precision, device = self.trainer.precision, self.trainer.strategy.root_device.type
        if precision not in PRECISIONS:
            raise UserError(f"Trainer(precision={precision!r}), expected one of {', '.join(PRECISIONS)}")
        check_validation(self.config.cfg.get("val_cfg"), device)
        if is_needed(precision, device):
            keep_single(self.model, device)
        if self.trainer.world_size == 1:
            self.model = revert_sync_batchnorm(self.model)
        if stage == "fit":
            self._begin_loop()

    def _begin_loop(self) -> None:
        """Makes the trainer accumulate as the configuration says, and hooks that act. Raises UserError where an epoch
        does not end with a step."""
        loop, steps, count = self.loop, self.trainer.datamodule.steps_per_epoch, self.config.batches_per_step
        lengths = [end - loop.begins(n) for n, end in enumerate(loop.ends)] if loop.by_iterations else [steps]
        if count > 1:
            self.trainer.accumulate_grad_batches = count
            if uneven := [length for length in lengths if length % count]:
                between = "iterations between validations" if loop.by_iterations else "batches of an epoch"
                instead = (
                    "" if loop.by_iterations else ", or trainer.accumulate_grad_batches, by which the last is short"
                )
                expected = f"a divisor of the {uneven[0]} {between}, which end with a step{instead}"
                raise UserError(f"expected {expected}", key="optim_wrapper.accumulative_counts", value=count)
        if len({*lengths}) > 1:
            self.trainer.reload_dataloaders_every_n_epochs = 1  # Lightning asks then how long the next epoch is
        self.hooks.begin(self.model, loop.length if loop.by_iterations else loop.length * steps)

    def _check_settings(self) -> None:
        """Raises UserError for settings of the trainer whose place is the configuration."""
        if isinstance(self.trainer.strategy, Sharded):
            raise UserError("expected ddp: detectors are not split", key="trainer.strategy", value="fsdp")
        trainer, interval = self.trainer, 1 if self.loop.by_iterations else self.loop.interval
        synchronised = self.run.trainer.sync_batchnorm
        check_devices(self.config.cfg, trainer.world_size, synchronised=synchronised)
        if (count := self.config.batches_per_step) > 1 and trainer.accumulate_grad_batches not in (1, count):
            says = f"but key 'optim_wrapper.accumulative_counts' is {count}: expected the same number, or none"
            raise UserError(f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}), {says}")
        if self.loop.by_iterations:
            self._check_iterations()
        if self.hooks.averages and any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
            raise UserError("callback WeightAveraging beside the EMAHook of key 'custom_hooks', expected one of them")
        if (clip := trainer.gradient_clip_val) is not None:
            raise UserError(f"Trainer(gradient_clip_val={clip}), expected none: key 'optim_wrapper.clip_grad' clips")
        # What this module sets itself, in a fit before, does not count.
        if trainer.global_step == 0 and (every := trainer.check_val_every_n_epoch) not in (1, interval):
            says = f"key 'train_cfg.val_interval' is {interval}, which says when to validate"
            raise UserError(f"Trainer(check_val_every_n_epoch={every}), but {says}: expected the same number, or none")

    def _check_iterations(self) -> None:
        """Raises UserError for a trainer that would make other iterations of a loop of theirs."""
        trainer = self.trainer
        if trainer.accumulate_grad_batches not in (1, self.config.batches_per_step):
            says = "expected none: iterations are batches, of which key 'optim_wrapper.accumulative_counts' makes steps"
            raise UserError(f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}), {says}")
        if trainer.overfit_batches:
            says = "expected none: a loop of iterations has no epochs, whose first batches would be repeated"
            raise UserError(f"Trainer(overfit_batches={trainer.overfit_batches}), {says}")

    def _check_data(self) -> None:
        """Raises UserError for other data than `DetectionData` with the module's classes."""
        data = self.trainer.datamodule
        if not isinstance(data, DetectionData):
            given = "no data module" if data is None else f"a {type(data).__name__}"
            expected = "a DetectionData, whose annotations it is scored by: datamodule=DetectionData(config)"
            raise UserError(f"LitDetector was given {given}, expected {expected}")
        self.check_classes(data.classes)

    def on_train_start(self) -> None:
        """Sets the modes that the detector wants in training: some keep normalisation in evaluation mode then."""
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets also whether validation follows the epoch, as mmengine has it: here, as a run goes on from any step."""
        super().on_train_batch_start(batch, batch_idx)
        epochs, validates = self.current_epoch + 1, self.loop.validates_after(self.current_epoch)
        # Lightning validates after epochs that this divides.
        self.trainer.check_val_every_n_epoch = epochs if validates else epochs + 1
        if (
            batch_idx % self.config.batches_per_step
        ):  # mmengine's iterations end after every batch, Lightning's steps not
            self._end_iteration()
        steps = self.config.batches_per_step == 1  # of the trainer's own accumulation, or every batch
        self.hooks.begin_iteration(self.global_step if steps else self.batches_before(batch_idx), self.current_epoch)

    def batches_before(self, batch_idx: int, epoch: int | None = None) -> int:
        if self.loop.by_iterations:
            return self.loop.begins(self.current_epoch if epoch is None else epoch) + batch_idx
        return super().batches_before(batch_idx, epoch)

    def _resizing(self) -> dict[int, BatchSyncRandomResize]:
        """Returns what draws a size of the images that lasts for some iterations, by its number."""
        augments = enumerate(getattr(self.model.data_preprocessor, "batch_augments", None) or ())
        return {number: augment for number, augment in augments if isinstance(augment, BatchSyncRandomResize)}

    def _end_iteration(self) -> None:
        self.hooks.end_iteration()
        self._schedules.step()

    def seed_step(self, seed: int) -> None:
        seed_all(seed)
        super().seed_step(seed)  # the GPU's too

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.or_diverged(lambda: self.model(**self.model.data_preprocessor(batch, True), mode="loss"))
        loss, parts = self.model.parse_losses(losses)
        self.check_loss(loss)
        images = len(batch["inputs"])
        add_loss(self.train_loss, loss, images)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=images)
        self.log("lr", self.learning_rate())
        self.log_dict({f"parts/{name}": value.detach() for name, value in parts.items()}, batch_size=images)
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._predictions.clear()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        # As under mmengine: what trains in mixed precision is validated in full precision, unless val_cfg.fp16 is set.
        full = not (self.config.cfg.get("val_cfg") or {}).get("fp16", False)
        with torch.autocast(self.device.type, enabled=False) if full else nullcontext():
            self._predictions.update(map(prediction_of, self.or_diverged(lambda: self(batch))))

    def on_validation_epoch_end(self, split: str = "val") -> None:
        # A trainer may be told to look at a part of the images: what it does not look at is not missed.
        for name, value in score(self._predictions, self.trainer.datamodule.ground_truth, of_seen=True).items():
            self.log(f"{split}/{name}", value, prog_bar=name == "mAP")
        self._predictions.clear()

    def learning_rate(self) -> float:
        """Returns the largest of all groups': mmengine makes a group of every parameter."""
        return max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups)

    def configure_optimizers(self) -> dict[str, Any]:
        cfg = self.config.cfg
        self._wrapper = build_wrapper(self.model, cfg, self.trainer.world_size)
        optimizer = self._wrapper.optimizer
        if self.loop.by_iterations:
            steps, of_a_pass = self.loop.length, self.trainer.datamodule.batches_per_pass
        else:
            steps = of_a_pass = self.optimizer_steps() * self.config.batches_per_step
        self._schedules = build_schedules(optimizer, cfg, self.loop, steps, of_a_pass)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedules, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Ends an iteration: here, before anybody may write a checkpoint of it."""
        self._end_iteration()

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        clip_gradients(self._wrapper)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        data, trainer, count = self.trainer.datamodule, self.trainer, self.config.batches_per_step
        checkpoint["steps_per_epoch"] = data.steps_per_epoch
        as_mmengine_counts = trainer.accumulate_grad_batches == count and trainer.limit_train_batches == 1.0
        done = self.loop.done(checkpoint["global_step"] * count, data.steps_per_epoch) if as_mmengine_counts else {}
        config = {**self.hparams.config, "model": without_initial_weights(self.hparams.config["model"])}
        self.hooks.save(checkpoint)
        if sizes := {number: augment._input_size for number, augment in self._resizing().items()}:
            checkpoint["input_sizes"] = sizes
        add_for_mmengine(checkpoint, config, data.train_images.metainfo, done)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where training goes on and an epoch has other batches than the checkpoint's, or a checkpoint
        has an average and the configuration none."""
        goes_on = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if goes_on:
            self.hooks.load(checkpoint)  # which knows the model's own names
        super().on_load_checkpoint(checkpoint)
        if not goes_on:
            return
        for number, augment in self._resizing().items():
            augment._input_size = checkpoint.get("input_sizes", {}).get(number)
        held, now = checkpoint.get("steps_per_epoch"), self.trainer.datamodule.steps_per_epoch
        check_same_steps(held, now, "steps an epoch", "number of devices and training images")


def build_detector(cfg: MMConfig, *, initial_weights: bool = True) -> nn.Module:
    """Builds mmdet's detector with its weights initialised as ``model`` says, and read from ``load_from`` where given.
    Raises UserError for a model that cannot be built, and for weights that cannot be had."""
    settings = cfg.model if initial_weights else without_initial_weights(cfg.model)
    check_types([settings, cfg.get("data_preprocessor")], "model")
    more = {"data_preprocessor": cfg.data_preprocessor} if cfg.get("data_preprocessor") else {}
    with nullcontext() if initial_weights else quiet(logging.ERROR, backbone.log):  # it would warn of random weights
        model = build(MODELS, settings, "model", **more)
    backbone.check_neck(model)
    if initial_weights:
        model.init_weights()
        if cfg.get("load_from"):
            load_start(model, cfg.load_from)
    return model


def load_start(model: nn.Module, path: str) -> None:
    """Puts weights of a checkpoint, ours or mmdet's of plain data, where names and shapes fit; says what did not.
    Raises UserError for a file that is missing, holds more than plain data, or fits nowhere."""
    with located("key 'load_from'"):
        checkpoint = read_plain(path)
    held, own = weights_in(checkpoint), model.state_dict()
    fitting = {name: value for name, value in held.items() if name in own and own[name].shape == value.shape}
    # Those of TimmBackbone as they are: it takes the rigid base's too, and names what does not fit.
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, backbone.TimmBackbone))
    fitting |= {name: value for name, value in held.items() if name.startswith(inside)}
    if not fitting:
        raise UserError(f"key 'load_from' is {path!r}: none of its {len(held)} weights fits {type(model).__name__}")
    with located(f"key 'load_from' is {path!r}"):
        model.load_state_dict(fitting, strict=False)
    if left := [name for name in own if name not in fitting]:
        fit = f"fit {len(left)} of the model's {len(own)}, which start anew"
        print(f"{path}: has no weights that {fit}: {some(left)}", file=sys.stderr)
    if unused := len(held) - len(fitting):
        print(f"{path}: {unused} of its {len(held)} weights are not used", file=sys.stderr)


def without_initial_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's settings by which no weights are read: a checkpoint's follow, and the others need not exist."""
    settings = copy.deepcopy(dict(settings))
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key in OF_THE_START:
            if key in part and not _only_initialises(part[key]):
                part.pop(key)
    return settings


def _only_initialises(value: Any) -> bool:
    """Tells whether an ``init_cfg`` draws weights and reads none."""
    parts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(part, Mapping) and part.get("type") != "Pretrained" for part in parts)


def check_num_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Raises UserError for a head that tells another number of classes apart than the data has."""
    for name, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        if isinstance(number, int) and name.rpartition(".")[2] not in CLASSLESS and number != len(classes):
            key = f"model.{name}.num_classes"
            raise UserError(f"key '{key}' is {number}, expected {len(classes)}: {', '.join(classes)}")
