"""Sections ``optim`` and ``ema``: the optimiser, its schedule, the averaging of weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from timm.optim import get_optimizer_info, list_optimizers

from dk_bench.config.fields import at_least
from dk_bench.reading.schema import checked

LOOKAHEAD = "lookahead_"  # before an optimiser's name, as for timm
CURVES, STEPS, FLATS = ("cosine", "tanh", "poly"), ("step", "multistep"), ("wsd", "rsqrt")
SCHEDULES = (*CURVES, *STEPS, *FLATS, "constant")  # by timm's names


def _is_optimizer(name: str) -> bool:
    return name.removeprefix(LOOKAHEAD) in list_optimizers()


def _has_momentum(optim: "OptimConfig") -> bool:
    return get_optimizer_info(optim.optimizer.removeprefix(LOOKAHEAD)).has_momentum


def _of(key: str, schedules: tuple[str, ...], default: Any, expected: str, holds: Callable[[Any], bool]) -> Any:
    """Returns the field ``key`` of ``optim`` that only some schedules have. With others it stands at its default: else
    it would change nothing but the name of the cell. ``holds`` is given the section."""
    with_these = f"with optim.schedule {', '.join(schedules[:-1])}{' or ' if schedules[:-1] else ''}{schedules[-1]}"
    words = "none" if default == [] else "null" if default is None else default

    def is_fit(optim: "OptimConfig") -> bool:
        return getattr(optim, key) == default or (optim.schedule in schedules and holds(optim))

    return checked(default, f"{words}, or {expected} {with_these}", is_fit, of_section=True)


def _are_milestones(optim: "OptimConfig") -> bool:
    rise = all(a < b for a, b in pairwise([0, *optim.decay_milestones, optim.epochs]))
    return rise and (optim.schedule == "multistep") == bool(optim.decay_milestones)


@dataclass
class OptimConfig:
    """The paper's recipe where nothing else is said: SGD; linear warm-up from zero, then a cosine to zero, both per
    step. Else timm's optimisers and schedules, by timm's names: see docs/recipes.md."""

    optimizer: str = checked(
        "momentum",  # SGD with plain momentum; timm's sgd has Nesterov's
        "a name of timm.optim.list_optimizers(), as adamw, lamb or lion, also after lookahead_",
        _is_optimizer,
    )
    # The peak, for data.batch_size as it is: nothing scales it.
    lr: float = checked(0.1, "a positive number", lambda lr: lr > 0)
    momentum: float = checked(
        0.9,
        "0.9: optim.optimizer has none, and optim.kwargs may have betas",
        lambda optim: optim.momentum == 0.9 or _has_momentum(optim),
        of_section=True,
    )
    # On weights; biases and normalisation layers have none.
    weight_decay: float = at_least(0, "0 or more", default=4e-5)
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to the optimiser: betas, eps, ...
    # Layers learn at lr times this for each that lies between them and the classifier, timm's way.
    layer_decay: float | None = checked(
        None, "null or above 0 and up to 1", lambda decay: decay is None or 0 < decay <= 1
    )
    epochs: int = at_least(1, default=90)  # warm-up, cycles and cool-down included
    warmup_epochs: float = checked(
        5.0, "0 to below optim.epochs", lambda optim: 0 <= optim.warmup_epochs < optim.epochs, of_section=True
    )
    # Offset generators learn at lr times this; auto: the paper's 0.1 for MobileNet-V2, 0.01 otherwise.
    offset_lr_multiplier: int | float | str = checked(  # int: W&B's agent writes 1.0 as 1
        "auto", "auto or a number from 0", lambda factor: factor == "auto" if isinstance(factor, str) else factor >= 0
    )
    # False: their weights do not decay. LAMB and LARS then leave the lengths of their steps alone, which go by the norm
    # of the weights and hardly let those grow that begin at zero.
    offset_weight_decay: bool = checked(
        True,
        "true where optim.weight_decay is 0: nothing decays",
        lambda optim: optim.offset_weight_decay or optim.weight_decay > 0,
        of_section=True,
    )
    schedule: str = checked(
        "cosine",
        f"{', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]} (rsqrt after a warm-up; timm's plateau goes by figures of "
        "epochs, these by steps)",
        lambda optim: optim.schedule in SCHEDULES and (optim.schedule != "rsqrt" or optim.warmup_epochs > 0),
        of_section=True,
    )
    warmup_lr: float = checked(
        0.0,
        "0 to optim.lr, and 0 without a warm-up",
        lambda optim: 0 <= optim.warmup_lr <= (optim.lr if optim.warmup_epochs else 0),
        of_section=True,
    )
    # The schedule's own epochs begin where the warm-up ends; null: yes for curves, no for step and multistep.
    warmup_prefix: bool | None = _of(
        "warmup_prefix", (*CURVES, *STEPS), None, "true or false after a warm-up", lambda optim: optim.warmup_epochs > 0
    )
    min_lr: float = _of("min_lr", (*CURVES, *FLATS), 0.0, "up to optim.lr", lambda optim: 0 < optim.min_lr <= optim.lr)
    # Between two steps, or of the last part of wsd and rsqrt; below 1 its share. null: timm's 90, and 0.2.
    decay_epochs: float | None = _of(
        "decay_epochs", ("step", *FLATS), None, "above 0", lambda optim: optim.decay_epochs > 0
    )
    decay_milestones: list[float] = checked(
        [],
        "rising epochs before optim.epochs with optim.schedule=multistep, otherwise none",
        _are_milestones,
        of_section=True,
    )
    decay_rate: float = _of(  # the factor of a step; of poly the power
        "decay_rate", (*STEPS, "poly"), 0.1, "above 0", lambda optim: optim.decay_rate > 0
    )
    cooldown_epochs: float = _of(  # the last ones, at min_lr
        "cooldown_epochs",
        CURVES,
        0.0,
        "fewer than optim.epochs leaves after the warm-up",
        lambda optim: 0 < optim.cooldown_epochs < optim.epochs - optim.warmup_epochs,
    )
    cycle_limit: int = _of("cycle_limit", CURVES, 1, "at least 1", lambda optim: optim.cycle_limit >= 1)
    cycle_mul: float = _of(  # of the cycles' lengths
        "cycle_mul",
        CURVES,
        1.0,
        "above 0 for several cycles",
        lambda optim: optim.cycle_limit > 1 and optim.cycle_mul > 0,
    )
    cycle_decay: float = _of(  # of their peaks
        "cycle_decay", CURVES, 0.5, "0 to 1 for several cycles", lambda o: o.cycle_limit > 1 and 0 <= o.cycle_decay <= 1
    )
    k_decay: float = _of("k_decay", ("cosine", "poly"), 1.0, "above 0", lambda optim: optim.k_decay > 0)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, which is what is then evaluated; null: off."""

    decay: float | None = checked(None, "null or 0 to below 1", lambda decay: decay is None or 0 <= decay < 1)
    # The average forgets quickly at first, as timm's does: after n steps at most 1 - (1 + n / gamma)^-power is kept.
    warmup: bool = checked(
        False, "false, or ema.decay", lambda ema: ema.decay is not None or not ema.warmup, of_section=True
    )
    warmup_gamma: float = checked(
        1.0,
        "1.0, or above 0 with ema.warmup",
        lambda ema: ema.warmup_gamma == 1 or (ema.warmup and ema.warmup_gamma > 0),
        of_section=True,
    )
    warmup_power: float = checked(
        2 / 3,
        "2/3, or above 0 with ema.warmup",
        lambda ema: ema.warmup_power == 2 / 3 or (ema.warmup and ema.warmup_power > 0),
        of_section=True,
    )
