"""Section ``trainer``: how the steps are computed."""

import re
from dataclasses import dataclass
from typing import Literal

from dk_bench.config.fields import at_least
from dk_bench.reading.schema import checked

DEVICES = re.compile(r"auto|-1|[1-9][0-9]*|[0-9]+(, ?[0-9]+)+|[0-9]+,")

# Lightning's names; it also takes the short ones, which older records may have.
PRECISIONS = (
    "32-true 16-mixed bf16-mixed 16-true bf16-true 64-true transformer-engine transformer-engine-float16"
).split()
SHORT = ("32", "16", "bf16", "64")


def _are_devices(devices: int | str) -> bool:
    return bool(DEVICES.fullmatch(devices)) if isinstance(devices, str) else devices >= 1 or devices == -1


def _are_machines(nodes: int | str) -> bool:
    return nodes == "auto" if isinstance(nodes, str) else nodes >= 1


@dataclass
class TrainerConfig:
    """Holds how the steps are computed."""

    precision: str = checked("32-true", f"one of {', '.join(PRECISIONS)}", lambda name: name in (*PRECISIONS, *SHORT))
    accelerator: str = "auto"
    devices: int | str = checked(
        "auto", "auto, a number of devices, -1 (all), or the numbers of some, as 0,2", _are_devices
    )
    # Of machines, on each of which torchrun or srun starts as many processes as there are devices; auto: as they do.
    num_nodes: int | str = checked("auto", "auto or a number of machines", _are_machines)
    # What several devices share: ddp the batch; fsdp also parameters, gradients and the optimiser's state.
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp"] = (
        "auto"
    )
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False  # several devices normalise by the statistics of the whole batch, not each by its own
    deterministic: bool = False  # only algorithms that are; on the CPU they all are
    accumulate_grad_batches: int = at_least(1, default=1)  # batches whose gradients make a step
    gradient_clip_val: float | None = checked(
        None, "null or a positive number", lambda value: value is None or value > 0
    )
    gradient_clip_algorithm: Literal["norm", "value", "agc"] = checked(  # agc: timm's, by the norms of the weights
        "norm",
        "norm, or another with trainer.gradient_clip_val",
        lambda trainer: trainer.gradient_clip_algorithm == "norm" or trainer.gradient_clip_val is not None,
        of_section=True,
    )
    # Besides the end of every epoch.
    checkpoint_every_n_steps: int | None = checked(
        None, "null or at least 1", lambda steps: steps is None or steps >= 1
    )
