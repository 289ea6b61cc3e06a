"""Sections ``optim`` and ``ema``: the optimiser, its schedule, the averaging of weights."""

from dataclasses import dataclass

from dk_bench.config.fields import at_least
from dk_bench.reading.schema import checked


@dataclass
class OptimConfig:
    """SGD; linear warm-up from zero, then a cosine to zero, both per step."""

    # The peak, for data.batch_size as it is: nothing scales it.
    lr: float = checked(0.1, "a positive number", lambda lr: lr > 0)
    momentum: float = 0.9
    weight_decay: float = 4e-5  # on weights; biases and normalisation layers have none
    epochs: int = at_least(1, default=90)
    warmup_epochs: float = checked(
        5.0, "0 to below optim.epochs", lambda optim: 0 <= optim.warmup_epochs < optim.epochs, of_section=True
    )
    # Offset generators learn at lr times this; auto: the paper's 0.1 for MobileNet-V2, 0.01 otherwise.
    offset_lr_multiplier: int | float | str = checked(  # int: W&B's agent writes 1.0 as 1
        "auto", "auto or a number from 0", lambda factor: factor == "auto" if isinstance(factor, str) else factor >= 0
    )


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, which is what is then evaluated; null: off."""

    decay: float | None = checked(None, "null or 0 to below 1", lambda decay: decay is None or 0 <= decay < 1)
