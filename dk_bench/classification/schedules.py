"""Learning rates by the step: the paper's, and timm's schedules."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from dk_bench.config import OptimConfig
from dk_bench.config.optim_section import CURVES, FLATS, STEPS
from dk_bench.errors import UserError
from dk_bench.training.own_trainer import check_same_steps

SHAPE = (  # keys that make another curve than the paper's
    "schedule warmup_lr warmup_prefix min_lr decay_epochs decay_milestones decay_rate cooldown_epochs cycle_limit "
    "cycle_mul cycle_decay k_decay".split()
)
SAME = "batches, epochs and accumulated gradients"  # what makes as many steps


def is_papers(config: OptimConfig) -> bool:
    """Tells whether the schedule is the paper's: linear from zero, then a cosine to zero."""
    default = OptimConfig()
    return all(getattr(config, key) == getattr(default, key) for key in SHAPE)


def schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Returns the factor on the learning rate at a step: linear from 0 to 1 at ``warmup_steps``, then a cosine to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


class WarmupCosine(LambdaLR):
    """`schedule` as a scheduler of every group, to be stepped after every optimiser step."""

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> None:
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        super().__init__(optimizer, lambda step: schedule(step, warmup_steps, total_steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on. Raises UserError for a schedule of another length, which would end elsewhere than at zero."""
        check_same_steps(state_dict.get("total_steps"), self.total_steps, "optimiser steps", SAME)
        super().load_state_dict(state_dict)


class TimmSchedule(LRScheduler):
    """One of timm's schedulers, to be stepped after every optimiser step.

    It moves every group alike and multiplies what comes out, the first value of the warm-up and the last of the
    schedule too, with the group's ``lr_scale``. ``total_steps`` is the length of training.

    Raises UserError for a schedule that does not fit into the training, see also `check_rates`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimConfig, steps_per_epoch: int) -> None:
        self.total_steps = config.epochs * steps_per_epoch
        with _refused(config, self.total_steps):
            arguments = _arguments(config, steps_per_epoch, self.total_steps)
            self.timms, _ = create_scheduler_v2(optimizer, config.schedule, **arguments)
            # Behind the last cycle timm asks how many more would fit, which of ever shorter ones is no number.
            self._end = self.total_steps - arguments["cooldown_epochs"] if config.schedule in CURVES else math.inf
            self._min_lr = config.min_lr
            super().__init__(optimizer)  # which steps to 0

    def step(self, epoch: None = None) -> None:
        """Moves to the next step."""
        self._move_to(self.last_epoch + 1)

    def _move_to(self, step: int) -> None:
        self.last_epoch = step
        if step >= self._end:
            self.timms.update_groups(self._min_lr)
        else:
            self.timms.step_update(step)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch, "total_steps": self.total_steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on. Raises UserError for a schedule of another length."""
        check_same_steps(state_dict.get("total_steps"), self.total_steps, "optimiser steps", SAME)
        self._move_to(state_dict["last_epoch"])


def check_rates(config: OptimConfig, steps_per_epoch: int) -> None:
    """Raises UserError for a schedule of timm's of which a step has no rate, that of training's end included. It walks
    through all of them, some seconds for a million, so that no training ends in its middle."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = TimmSchedule(optimizer, config, steps_per_epoch)
    (group,), is_finite = optimizer.param_groups, math.isfinite
    with _refused(config, scheduler.total_steps):
        for step in range(scheduler.total_steps + 1):
            scheduler._move_to(step)
            if type(group["lr"]) is complex or not is_finite(group["lr"]):
                raise ValueError(f"the rate of step {step} would be {group['lr']}")


@contextlib.contextmanager
def _refused(config: OptimConfig, total: int) -> Iterator[None]:
    """Makes a UserError of what timm says of a schedule, or Python of its numbers."""
    try:
        yield
    except (ValueError, AssertionError, ArithmeticError, TypeError) as error:  # the last: of a complex number's cosine
        why = error.args[-1] if error.args else "none is left between warm-up and cool-down"
        default = OptimConfig()
        changed = [key for key in SHAPE[1:] if getattr(config, key) != getattr(default, key)]
        others = " or others than " + ", ".join(f"optim.{key}={getattr(config, key)}" for key in changed)
        expected = f"expected another{others if changed else ''}"
        reason = f"which does not go into {total} steps: {str(why).rstrip('.')}; {expected}"
        raise UserError(reason, key="optim.schedule", value=config.schedule) from error


def _arguments(config: OptimConfig, steps_per_epoch: int, total: int) -> dict[str, Any]:
    """Returns what `timm.scheduler.create_scheduler_v2` takes for as many steps as the training has. Its epochs are
    steps here, so that no length is rounded twice."""

    def steps(epochs: float) -> int:
        return max(1, round(epochs * steps_per_epoch))

    warmup, cooldown = round(config.warmup_epochs * steps_per_epoch), round(config.cooldown_epochs * steps_per_epoch)
    prefix = config.schedule not in STEPS if config.warmup_prefix is None else config.warmup_prefix
    span = total - cooldown - (warmup if prefix else 0)
    cycles, growth = config.cycle_limit, config.cycle_mul
    first = span / (cycles if growth == 1 else (growth**cycles - 1) / (growth - 1))
    decay = config.decay_epochs
    if decay is not None and not (config.schedule in FLATS and decay < 1):
        decay = steps(decay)
    elif config.schedule == "step" and decay is None:
        decay = steps(90)  # timm's default
    same = ("warmup_lr", "min_lr", "decay_rate", "cycle_limit", "cycle_mul", "cycle_decay", "k_decay")
    return {name: getattr(config, name) for name in same} | {
        "num_epochs": span if cycles == 1 else first,
        "warmup_epochs": warmup,
        "warmup_prefix": prefix,
        "cooldown_epochs": cooldown,
        "decay_epochs": decay,
        "decay_milestones": [steps(epoch) for epoch in config.decay_milestones],
        "step_on_epochs": False,
        "updates_per_epoch": 1,
    }
