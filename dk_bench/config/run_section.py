"""What a run of any task has: its name, its seed, where it writes, and who is told."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dk_bench.config.trainer_section import TrainerConfig
from dk_bench.reading.schema import checked

PROJECT = re.compile(r"[^/\\#?%:]{0,128}", re.DOTALL)


def _is_name(name: str) -> bool:
    parts = Path(name).parts
    fits = all(len(os.fsencode(part)) <= 200 for part in parts)  # of 255 bytes; hash and seed follow
    return fits and "\0" not in name and ".." not in parts and not Path(name).is_absolute()


@dataclass
class WandbConfig:
    """Weights & Biases, where ``logger`` is wandb. ``offline`` needs no account and leaves files that ``wandb sync``
    can send later.

    Started by W&B's agent (it sets WANDB_SWEEP_ID), a run logs online whatever ``mode`` says, under the id, name and
    project that the agent gives it: the sweep could not see its metric otherwise.
    """

    mode: Literal["disabled", "offline", "online"] = "offline"
    project: str = checked(
        "dk_bench",
        "up to 128 characters, none of / \\ # ? % :, as W&B has it",
        lambda wandb: wandb.mode == "disabled" or bool(PROJECT.fullmatch(wandb.project)),
        of_section=True,
    )
    # Uploads last.ckpt as an artifact, as Lightning's WandbLogger does: true at the end of training, all every time it
    # is written.
    log_model: bool | Literal["all"] = checked(
        False,
        "false, or wandb.mode=online: W&B uploads no checkpoint of another run",
        lambda wandb: not wandb.log_model or wandb.mode == "online",
        of_section=True,
    )


@dataclass
class RunConfig:
    """Holds what a run of any task has: its name, its seed, where it writes and how it is computed."""

    name: str = checked("run", "a name that leaves a run's folder below output", _is_name)
    seed: int = checked(0, "an integer from 0 to 2^32 - 1", lambda seed: 0 <= seed < 2**32)
    # The folder in which every run gets a folder of its own.
    output: str = checked("runs", "a folder", lambda folder: "\0" not in folder)
    # Where metrics go besides the record: to W&B, or to files in the run's folder.
    logger: Literal["wandb", "tensorboard", "csv", "none"] = checked(
        "wandb",
        "wandb where wandb.log_model is set: the others upload no checkpoint",
        lambda run: run.logger == "wandb" or not run.wandb.log_model,
        of_section=True,
    )
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
