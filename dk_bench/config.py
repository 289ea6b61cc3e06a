"""Experiment configurations: one YAML file an experiment, checked against the dataclasses below.

A file may name another with ``base:`` (a path relative to itself) and then holds only what differs. Values come from
the dataclass defaults, then the bases, then the file, then ``key=value`` overrides; every layer is checked by itself,
so that an error names its source, the key, the value and what is expected.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dk_bench.errors import UserError, located
from dk_bench.models.spec import KernelSpec
from dk_bench.reading.schema import Layer, checked, merged
from dk_bench.reading.values import plain
from dk_bench.reading.yaml_words import read_words

DEVICES = re.compile(r"auto|-1|[1-9][0-9]*|[0-9]+(, ?[0-9]+)+|[0-9]+,")
PROJECT = re.compile(r"[^/\\#?%:]{0,128}", re.DOTALL)
CACHES = {"auto", "memory", "off"}
NO_CACHES = {"on", "none", "null", "no", "yes", "false", "true", "file", "disk"}  # other words for one of these
IMAGES = "a folder, a tar or the name of a split"


def _is_name(name: str) -> bool:
    parts = Path(name).parts
    fits = all(len(os.fsencode(part)) <= 200 for part in parts)  # of 255 bytes; hash and seed follow
    return fits and "\0" not in name and ".." not in parts and not Path(name).is_absolute()


def _is_range(pair: list[float] | None, top: float = math.inf) -> bool:
    return pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)


def _is_cache(value: str) -> bool:
    return value in CACHES or (bool(value) and "\0" not in value and value.lower() not in CACHES | NO_CACHES)


def _are_devices(devices: int | str) -> bool:
    return bool(DEVICES.fullmatch(devices)) if isinstance(devices, str) else devices >= 1 or devices == -1


def _at_least(low: int, expected: str = "", *, default: float) -> Any:
    return checked(default, expected or f"at least {low}", lambda value: value >= low)


def _place(what: str) -> Any:
    """Returns the field of a name, or null; an empty text (an unset variable of the shell) would pass for null."""
    return checked(None, f"{what}, or null", lambda text: text != "")


@dataclass
class ModelConfig:
    """The model: a timm name, dk_bench's own included. The data decide the number of classes.

    Weights to start from are put into the rigid model, which is then deformed. A classifier of another number of
    classes starts anew. ``checkpoint`` tells cells apart as it is written: name one file one way, relative to the
    folder of the project, and a cell is the same on every machine.
    """

    name: str = "resnet50dw"
    spec: dict[str, Any] | None = None  # fields of dk_bench.KernelSpec that deform the rigid model named above
    # Start from timm's weights of the rigid model; timm downloads them.
    pretrained: bool = checked(
        False,
        "false where model.checkpoint is set: the weights come from one of them",
        lambda model: not (model.pretrained and model.checkpoint),
        of_section=True,
    )
    drop_path_rate: float = checked(0.0, "0 to below 1", lambda rate: 0 <= rate < 1)
    # Weights to start from, of this model or its rigid base: what `train` left, an export, another tool's file.
    checkpoint: str | None = _place("a file or a folder")
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model


@dataclass
class AugmentConfig:
    """Training augmentation."""

    # The crop's share of the area; null: no crop.
    scale: list[float] | None = checked([0.08, 1.0], "two rising numbers in (0, 1]", lambda pair: _is_range(pair, 1))
    ratio: list[float] = checked([3 / 4, 4 / 3], "two rising positive numbers", _is_range)  # crop's width / height
    flip: float = checked(0.5, "a probability", lambda flip: 0 <= flip <= 1)  # of a horizontal flip
    color_jitter: float = _at_least(0, "0 or more", default=0.4)  # of brightness, contrast and saturation; 0: none


@dataclass
class ShiftsConfig:
    """Test sets of procedural images from beyond training's range of one factor; null: no such set."""

    scale_up: float | None = None  # half extents from the upper end of scale to this, fraction of the side
    scale_down: float | None = None  # half extents from this to the lower end of scale
    rotation: float | None = None  # from the largest rotation to this, radians, both ways
    bend: float | None = None  # from the largest bend to this, radians per half extent, both ways


@dataclass
class ProceduralConfig:
    """The embedded data set, see dk_bench.data.procedural. Its seed is not the run's: all runs see the same images."""

    train_images: int = _at_least(1, default=4000)
    val_images: int = _at_least(1, default=1000)
    test_images: int = _at_least(0, "0 (none) or more", default=0)  # of the test set and of every shifted one
    classes: int = 10
    seed: int = 0
    scale: list[float] = field(default_factory=lambda: [0.15, 0.34])  # half extents, fraction of the side
    bend: float = 0.8  # largest bend, radians per half extent
    rotation: float = 3.141592653589793  # largest rotation, radians
    clutter: int = 6  # strokes and discs, each
    shifts: ShiftsConfig = field(default_factory=ShiftsConfig)


@dataclass
class DataConfig:
    """Images. ``timm``: whatever timm.data.create_dataset takes with random access."""

    source: Literal["procedural", "timm"] = "procedural"
    name: str = "procedural"  # what records and tables call the data; tells data sets apart, wherever they lie
    reader: str = ""  # timm's data set name, as in hfds/NAME or torch/NAME; empty: a folder or a tar
    root: str | None = _place("a folder")  # for named data sets: where they lie
    train: str | None = _place(IMAGES)  # folder or tar with one folder a class; for named data sets: the split's name
    val: str | None = _place(IMAGES)
    test: str | None = _place(IMAGES)  # evaluated once, at the end of a run, and by dk-bench eval; null: none
    size: int = _at_least(1, "at least 1 pixel", default=224)  # side of the square the network sees
    # Evaluation: resize the shorter side to size / crop_pct, then crop the centre.
    crop_pct: float = checked(0.875, "above 0 and up to 1", lambda share: 0 < share <= 1)
    mean: list[float] = checked([0.485, 0.456, 0.406], "three numbers", lambda mean: len(mean) == 3)
    std: list[float] = checked(
        [0.229, 0.224, 0.225], "three positive numbers", lambda std: len(std) == 3 and min(std) > 0
    )
    batch_size: int = _at_least(1, default=256)  # of one step, over all devices
    workers: int = _at_least(0, "0 (load in the training process) or more", default=4)
    # Decoded images: auto (files beside the runs, which all of them share; memory without a run), memory, off (decoded
    # in every epoch), or a folder for such files. Nothing of it changes what the network sees.
    cache: str = checked(
        "auto", "auto, memory, off, or a folder (./none for one that is named by such a word)", _is_cache
    )
    cache_gb: float = _at_least(0, "gigabytes, 0 or more", default=2.0)  # a split that is larger, decoded, is not kept
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)


@dataclass
class OptimConfig:
    """SGD; linear warm-up from zero, then a cosine to zero, both per step."""

    # The peak, for data.batch_size as it is: nothing scales it.
    lr: float = checked(0.1, "a positive number", lambda lr: lr > 0)
    momentum: float = 0.9
    weight_decay: float = 4e-5  # on weights; biases and normalisation layers have none
    epochs: int = _at_least(1, default=90)
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


@dataclass
class TrainerConfig:
    """Holds how the steps are computed."""

    precision: str = "32-true"  # Lightning's names: 16-mixed, bf16-mixed, ...
    accelerator: str = "auto"
    devices: int | str = checked(
        "auto", "auto, a number of devices, -1 (all), or the numbers of some, as 0,2", _are_devices
    )
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False  # several devices normalise by the statistics of the whole batch, not each by its own
    deterministic: bool = False  # only algorithms that are; on the CPU they all are
    # Besides the end of every epoch.
    checkpoint_every_n_steps: int | None = checked(
        None, "null or at least 1", lambda steps: steps is None or steps >= 1
    )


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


@dataclass
class Config(RunConfig):
    """One experiment of classification."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration file (None: the defaults alone) with its bases and applies ``key=value`` overrides. Raises
    UserError for a file that is missing or not YAML, an unknown key, a value of the wrong type or range."""
    return _with_short_spec(merged(Config, _file_layers(Path(path)) if path is not None else [], overrides))


def config_from_dict(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    """Returns the configuration `to_dict` gave, as checkpoints hold it, and overrides. Raises as load_config does."""
    return _with_short_spec(merged(Config, [(source, values)], overrides))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Returns the configuration as plain data: dicts, lists, strings, numbers."""
    return dataclasses.asdict(config)


def _file_layers(path: Path, children: tuple[Path, ...] = ()) -> list[Layer]:
    """Returns name and content of a file and its bases, the base first."""
    content = read_words(path)
    content = {} if content is None else content
    with located(path):
        if path.resolve() in children:
            raise UserError("'base' leads back to this file")
        if not isinstance(content, dict):
            raise UserError(f"expected keys and values, found {type(plain(content)).__name__}")
        base = content.pop("base", None)
        if not isinstance(base, str | None):
            raise UserError("expected the path of another configuration", key="base", value=plain(base))
    below = [] if base is None else _file_layers(path.parent / base, (*children, path.resolve()))
    return [*below, (str(path), content)]


def _with_short_spec(config: Config) -> Config:
    """Leaves in ``model.spec`` what differs from KernelSpec's defaults, so that one spec is one cell however it is
    written. Raises UserError for fields that make no KernelSpec, and for a spec that changes nothing."""
    if config.model.spec is not None:
        spec = spec_of(config.model)
        if spec.is_rigid:
            what = f"null, or one or more of {', '.join(spec.PARTS)}"
            raise UserError(f"which changes nothing; expected {what}", key="model.spec", value=config.model.spec)
        config.model.spec = spec.changed()
    return config


def spec_of(model: ModelConfig) -> KernelSpec:
    """Returns ``model.spec``, which is not None, as a KernelSpec. Raises UserError for fields that make none."""
    try:
        return KernelSpec.from_dict(model.spec)
    except (ValueError, TypeError) as error:
        raise UserError(f"which makes no spec: {error}", key="model.spec", value=model.spec) from error
