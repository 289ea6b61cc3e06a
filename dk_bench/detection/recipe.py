"""Optimiser and schedule of an mmengine configuration, by mmengine's own builders."""

import logging
from collections.abc import Sequence
from typing import Any

import mmengine
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn
from torch.optim import Optimizer

from dk_bench.detection.loops import Loop
from dk_bench.detection.mmengine_config import build, quiet
from dk_bench.errors import UserError
from dk_bench.training.own_trainer import check_same_steps

# AmpOptimWrapper's, and accumulation: Lightning has both.
OF_THE_TRAINER = ("dtype", "loss_scale", "use_fp16", "accumulative_counts")


class Schedules:
    """mmengine's schedulers as one, to be stepped after every optimiser step, or, as mmengine does where it accumulates
    gradients, after every batch.

    Those of iterations step every time, then at the end of an epoch those of epochs, as mmengine's runner does. So a
    checkpoint of any step, the last one of an epoch included, holds the schedule as the next step finds it.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[_ParamScheduler], steps_per_epoch: int) -> None:
        self.optimizer, self.schedulers, self.steps_per_epoch = optimizer, list(schedulers), steps_per_epoch
        self.steps = 0

    def step(self) -> None:
        """Sets the optimiser's learning rates, or what else is scheduled, for the next step."""
        self.steps += 1
        ends_epoch = self.steps % self.steps_per_epoch == 0
        for by_epoch in (False, True) if ends_epoch else (False,):
            for scheduler in self.schedulers:
                if scheduler.by_epoch == by_epoch:
                    scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        schedulers = [scheduler.state_dict() for scheduler in self.schedulers]
        return {"steps": self.steps, "steps_per_epoch": self.steps_per_epoch, "schedulers": schedulers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on. Raises UserError where an epoch has other steps than before."""
        held, now = state_dict.get("steps_per_epoch"), self.steps_per_epoch
        check_same_steps(held, now, "optimiser steps an epoch", "batches and accumulated gradients")
        self.steps = state_dict["steps"]
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(state)


def build_wrapper(model: nn.Module, cfg: mmengine.Config, world_size: int) -> OptimWrapper:
    """Returns the optimiser that ``optim_wrapper`` describes, with its parameter groups and gradient clipping.

    With ``auto_scale_lr`` enabled learning rates are scaled to the batch over all devices. Raises UserError for
    settings that make no optimiser.
    """
    if (scale := cfg.optim_wrapper.get("loss_scale", "dynamic")) != "dynamic":
        raise UserError(f"key 'optim_wrapper.loss_scale' is {scale!r}, expected 'dynamic'")
    settings = {key: value for key, value in cfg.optim_wrapper.items() if key not in OF_THE_TRAINER}
    settings["type"] = "OptimWrapper"
    try:
        with quiet(logging.ERROR):  # it warns of every frozen parameter
            wrapper = build_optim_wrapper(model, settings)
    except NotImplementedError as error:  # mmdet's layer-wise decay, without a word
        knows = f"does not know the layers of {type(getattr(model, 'backbone', model)).__name__}"
        raise UserError(f"key 'optim_wrapper.constructor' is {settings.get('constructor')!r}, which {knows}") from error
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"key 'optim_wrapper' cannot be built: {error}") from error
    if not isinstance(wrapper, OptimWrapper):
        raise UserError(f"key 'optim_wrapper' makes a {type(wrapper).__name__}, expected one optimiser")
    scale = cfg.get("auto_scale_lr") or {}
    if scale.get("enable"):
        batch = world_size * cfg.train_dataloader.get("batch_size", 1)
        for group in wrapper.optimizer.param_groups:
            group["lr"] *= batch / scale["base_batch_size"]
    return wrapper


def build_schedules(
    optimizer: Optimizer, cfg: mmengine.Config, loop: Loop, steps_per_epoch: int, pass_length: int
) -> Schedules:
    """Builds what ``param_scheduler`` describes, by default up to training's end. Raises UserError for bad settings.

    ``steps_per_epoch`` are those of the schedules' epoch, which in a loop of iterations is all of training;
    ``pass_length`` is what mmengine takes for an epoch where it turns epochs into iterations.
    """
    settings = cfg.get("param_scheduler") or []
    epochs, schedulers = 1 if loop.by_iterations else loop.length, []
    for number, one in enumerate([settings] if isinstance(settings, dict) else settings):
        key, end = f"param_scheduler.{number}", epochs if one.get("by_epoch", True) else epochs * steps_per_epoch
        made = build(PARAM_SCHEDULERS, one, key, optimizer=optimizer, epoch_length=pass_length, end=end)
        if getattr(made, "need_val_args", False):
            raise UserError(f"key '{key}' is a {type(made).__name__}, which needs validation's result")
        schedulers.append(made)
    return Schedules(optimizer, schedulers, steps_per_epoch)


def clip_gradients(wrapper: OptimWrapper) -> None:
    """Clips by ``optim_wrapper.clip_grad``, all parameters together, where that is given."""
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if wrapper.clip_grad_kwargs and parameters:
        wrapper.clip_func(parameters, **wrapper.clip_grad_kwargs)
