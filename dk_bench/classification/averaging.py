"""The average of the weights that section ``ema`` asks for, by Lightning's callbacks."""

from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor

from dk_bench.config import EmaConfig


class WarmAveraging(WeightAveraging):
    """Exponential moving average of weights that forgets quickly at first, as timm's ModelEmaV3 with ``use_warmup``.

    The first step's weights are the average's. After n of them it keeps ``decay``, or at most
    1 - (1 + n / gamma) ^ -power of itself.
    """

    def __init__(self, decay: float, gamma: float = 1.0, power: float = 2 / 3) -> None:
        def averaged(average: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
            taken = (1 + steps / gamma).pow(-power).clamp(min=1 - decay)  # on the weights' device: no step waits for it
            return average + taken * (weights - average)

        super().__init__(avg_fn=averaged)


def weight_averaging(config: EmaConfig) -> WeightAveraging | None:
    """Returns the callback that averages the weights as ``config`` says; None where it says nothing."""
    if config.decay is None:
        return None
    if config.warmup:
        return WarmAveraging(config.decay, config.warmup_gamma, config.warmup_power)
    return EMAWeightAveraging(decay=config.decay)


def called_in_words(config: EmaConfig) -> str:
    """Returns the callback of `weight_averaging` as it is written in Python."""
    if config.warmup:
        place = f"{WarmAveraging.__module__}.{WarmAveraging.__name__}"
        return f"{place}({config.decay}, {config.warmup_gamma}, {config.warmup_power})"
    return f"EMAWeightAveraging(decay={config.decay})"
