"""Experiment configurations: one YAML file an experiment, checked against the dataclasses below.

A file may name another with ``base:`` (a path relative to itself) and then holds only what differs. Values come from
the dataclass defaults, then the bases, then the file, then ``key=value`` overrides; every layer is checked by itself,
so that an error names its source, the key, the value and what is expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dk_bench.errors import UserError
from dk_bench.models.spec import KernelSpec

# OmegaConf reads the annotations at run time and knows typing's Optional, Union and Literal best.
Optional, Union = typing.Optional, typing.Union


@dataclass
class ModelConfig:
    """The model: a timm name, dk_bench's own included. The data decide the number of classes.

    Weights to start from are put into the rigid model, which is then deformed. A classifier of another number of
    classes starts anew. ``checkpoint`` tells cells apart as it is written: name one file one way, relative to the
    folder of the project, and a cell is the same on every machine.
    """

    name: str = "resnet50dw"
    spec: Optional[dict[str, Any]] = None  # fields of dk_bench.KernelSpec that deform the rigid model named above
    pretrained: bool = False  # start from timm's weights of the rigid model; timm downloads them
    drop_path_rate: float = 0.0
    checkpoint: Optional[str] = None  # weights to start from: what `train` left of this model or its rigid base
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model


@dataclass
class AugmentConfig:
    """Training augmentation."""

    scale: Optional[list[float]] = field(default_factory=lambda: [0.08, 1.0])  # crop's share of the area; null: no crop
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # crop's width / height
    flip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.4  # of brightness, contrast and saturation; 0: none


@dataclass
class ProceduralConfig:
    """The embedded data set, see dk_bench.data.procedural. Its seed is not the run's: all runs see the same images."""

    train_images: int = 4000
    val_images: int = 1000
    classes: int = 10
    seed: int = 0
    scale: list[float] = field(default_factory=lambda: [0.15, 0.34])  # half extents, fraction of the side
    bend: float = 0.8  # largest bend, radians per half extent
    rotation: float = 3.141592653589793  # largest rotation, radians
    clutter: int = 6  # strokes and discs, each


@dataclass
class DataConfig:
    """Images. ``timm``: whatever timm.data.create_dataset takes with random access."""

    source: Literal["procedural", "timm"] = "procedural"
    name: str = "procedural"  # what records and tables call the data; tells data sets apart, wherever they lie
    reader: str = ""  # timm's data set name, as in hfds/NAME or torch/NAME; empty: a folder or a tar
    root: Optional[str] = None  # for named data sets: where they lie
    train: Optional[str] = None  # folder or tar with one folder a class; for named data sets: the split's name
    val: Optional[str] = None
    size: int = 224  # side of the square the network sees, pixels
    crop_pct: float = 0.875  # evaluation: resize the shorter side to size / crop_pct, then crop the centre
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    batch_size: int = 256  # of one step, over all devices
    workers: int = 4
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)


@dataclass
class OptimConfig:
    """SGD; linear warm-up from zero, then a cosine to zero, both per step."""

    lr: float = 0.1  # peak, for data.batch_size as it is: nothing scales it
    momentum: float = 0.9
    weight_decay: float = 4e-5  # on weights; biases and normalisation layers have none
    epochs: int = 90
    warmup_epochs: float = 5.0
    # Offset generators learn at lr times this; auto: the paper's 0.1 for MobileNet-V2, 0.01 otherwise.
    offset_lr_multiplier: Union[int, float, str] = "auto"  # int: W&B's agent writes 1.0 as 1


@dataclass
class EmaConfig:
    """Exponential moving average of the weights; it is what is then evaluated."""

    decay: Optional[float] = None  # null: off


@dataclass
class TrainerConfig:
    """How the steps are computed."""

    precision: str = "32-true"  # Lightning's names: 16-mixed, bf16-mixed, ...
    accelerator: str = "auto"
    devices: Union[int, str] = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False  # several devices normalise by the statistics of the whole batch, not each by its own
    deterministic: bool = False  # only algorithms that are; on the CPU they all are
    checkpoint_every_n_steps: Optional[int] = None  # besides the end of every epoch


@dataclass
class WandbConfig:
    """Weights & Biases. ``offline`` needs no account and leaves files that ``wandb sync`` can send later.

    Started by W&B's agent (it sets WANDB_SWEEP_ID), a run logs online whatever ``mode`` says, under the id, name and
    project that the agent gives it: the sweep could not see its metric otherwise.
    """

    mode: Literal["disabled", "offline", "online"] = "offline"
    project: str = "dk_bench"


@dataclass
class Config:
    """One experiment."""

    name: str = "run"
    seed: int = 0
    output: str = "runs"  # folder in which every run gets a folder of its own
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration file (None: the defaults alone) with its bases and applies ``key=value`` overrides.

    Raises UserError for a file that is missing or not YAML, an unknown key, a value of the wrong type or range.
    """
    layers = _file_layers(Path(path)) if path is not None else []
    return _merge([*layers, *((override, parse_override(override)) for override in overrides)])


def config_from_dict(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    """The configuration `to_dict` gave, as checkpoints hold it, and overrides. Raises as load_config does."""
    return _merge([(source, dict(values)), *((override, parse_override(override)) for override in overrides)])


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain data: dicts, lists, strings, numbers."""
    return dataclasses.asdict(config)


def _file_layers(path: Path, children: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content) of a file and its bases, the base first."""
    if path.resolve() in children:
        raise UserError(f"{path}: 'base' leads back to this file")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise UserError(f"{path}: no configuration can be read there: {error.strerror or error}") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return [(str(path), content)]
    if not isinstance(base, str):
        raise UserError(f"{path}: key 'base' is {base!r}, expected the path of another configuration")
    return [*_file_layers(path.parent / base, (*children, path.resolve())), (str(path), content)]


def parse_override(override: str) -> dict[str, Any]:
    """``a.b=VALUE`` as nested sections, VALUE in YAML. Raises UserError for anything else."""
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: expected KEY=VALUE, for example optim.epochs=10")
    try:
        return _with_nulls(OmegaConf.to_container(OmegaConf.from_dotlist([override])))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{override!r}: cannot be read: {' '.join(str(error).split())}") from error


def _with_nulls(value: Any) -> Any:
    """``None`` is null: W&B's agent writes the values of a sweep as Python does."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value == "None" else value


def _merge(layers: Iterable[tuple[str, dict[str, Any]]]) -> Config:
    merged = OmegaConf.structured(Config)
    for source, content in layers:
        _check_sections(source, content, Config)
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create(content))
        except ConfigKeyError as error:
            raise UserError(f"{source}: unknown key '{error.full_key}'{_did_you_mean(error.full_key)}") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_wrong_type(error, content)}") from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a ${reference} that leads nowhere
        raise UserError(f"key '{error.full_key}': {str(error).splitlines()[0]}") from error
    _check_ranges(config)
    _check_spec(config.model)
    return config


def _check_sections(source: str, content: dict[str, Any], schema: type, prefix: str = "") -> None:
    """Raises UserError where a section's place holds a single value, which OmegaConf reports without its key."""
    for name, hint in typing.get_type_hints(schema).items():
        if not dataclasses.is_dataclass(hint) or name not in content:
            continue
        if not isinstance(content[name], dict):
            raise UserError(f"{source}: key '{prefix}{name}' is {content[name]!r}, expected {_describe(hint)}")
        _check_sections(source, content[name], hint, f"{prefix}{name}.")


def _keys(schema: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> annotation, sections included."""
    found = {}
    for name, hint in typing.get_type_hints(schema).items():
        found[prefix + name] = hint
        if dataclasses.is_dataclass(hint):
            found |= _keys(hint, f"{prefix}{name}.")
    return found


def _did_you_mean(key: str) -> str:
    keys = list(_keys(Config))
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    close = close or [k for k in keys if k.rsplit(".")[-1] == key.rsplit(".")[-1]]  # the right name, another section
    return f", did you mean '{close[0]}'?" if close else f"; keys here: {', '.join(_siblings(key, keys))}"


def _siblings(key: str, keys: list[str]) -> list[str]:
    section = key.rpartition(".")[0]
    return [k for k in keys if k.rpartition(".")[0] == section]


def _wrong_type(error: OmegaConfBaseException, content: Any) -> str:
    key = error.full_key or ""
    value = content
    for part in key.replace("[", ".").replace("]", "").split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else value
    hint = _keys(Config).get(key.partition("[")[0])
    return f"key '{key}' is {value!r}, expected {_describe(hint)}" if hint else str(error).splitlines()[0]


def _describe(hint: Any) -> str:
    """An annotation in words a user of YAML knows."""
    plain = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in plain:
        return plain[hint]
    if dataclasses.is_dataclass(hint):
        return f"a section with keys {', '.join(f.name for f in dataclasses.fields(hint))}"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    if typing.get_origin(hint) is list:
        return f"a list, each item {_describe(arguments[0])}"
    return " or ".join(map(_describe, arguments)) if typing.get_origin(hint) is Union else "keys and values"


def _check_ranges(config: Config) -> None:
    """What a type cannot say. Raises UserError for the first key out of range."""
    data, optim, shapes = config.data, config.optim, config.data.procedural
    multiplier = optim.offset_lr_multiplier
    every = config.trainer.checkpoint_every_n_steps
    rules = [
        ("seed", config.seed, 0 <= config.seed < 2**32, "an integer from 0 to 2^32 - 1"),
        ("model.drop_path_rate", config.model.drop_path_rate, 0 <= config.model.drop_path_rate < 1, "0 to below 1"),
        ("model.pretrained", config.model.pretrained, not (config.model.pretrained and config.model.checkpoint),
         "false where model.checkpoint is set: the weights come from one of them"),
        ("data.size", data.size, data.size >= 1, "at least 1 pixel"),
        ("data.crop_pct", data.crop_pct, 0 < data.crop_pct <= 1, "above 0 and up to 1"),
        ("data.mean", data.mean, len(data.mean) == 3, "three numbers"),
        ("data.std", data.std, len(data.std) == 3 and min(data.std) > 0, "three positive numbers"),
        ("data.batch_size", data.batch_size, data.batch_size >= 1, "at least 1"),
        ("data.workers", data.workers, data.workers >= 0, "0 (load in the training process) or more"),
        ("data.augment.scale", data.augment.scale, _is_range(data.augment.scale, 1), "two rising numbers in (0, 1]"),
        ("data.augment.ratio", data.augment.ratio, _is_range(data.augment.ratio), "two rising positive numbers"),
        ("data.augment.flip", data.augment.flip, 0 <= data.augment.flip <= 1, "a probability"),
        ("data.augment.color_jitter", data.augment.color_jitter, data.augment.color_jitter >= 0, "0 or more"),
        ("data.procedural.train_images", shapes.train_images, shapes.train_images >= 1, "at least 1"),
        ("data.procedural.val_images", shapes.val_images, shapes.val_images >= 1, "at least 1"),
        ("optim.lr", optim.lr, optim.lr > 0, "a positive number"),
        ("optim.epochs", optim.epochs, optim.epochs >= 1, "at least 1"),
        ("optim.warmup_epochs", optim.warmup_epochs,
         0 <= optim.warmup_epochs < optim.epochs, "0 to below optim.epochs"),
        ("optim.offset_lr_multiplier", multiplier,
         multiplier == "auto" if isinstance(multiplier, str) else multiplier >= 0, "auto or a number from 0"),
        ("ema.decay", config.ema.decay, config.ema.decay is None or 0 <= config.ema.decay < 1, "null or 0 to below 1"),
        ("trainer.checkpoint_every_n_steps", every, every is None or every >= 1, "null or at least 1"),
    ]  # fmt: skip
    for key, value, holds, expected in rules:
        if not holds:
            raise UserError(f"key '{key}' is {value!r}, expected {expected}")


def _check_spec(model: ModelConfig) -> None:
    """Leaves in ``spec`` what differs from KernelSpec's defaults, so that one spec is one cell however it is written.

    Raises UserError for fields that make no KernelSpec, and for a spec that changes nothing.
    """
    if model.spec is None:
        return
    try:
        spec = KernelSpec.from_dict(model.spec)
    except ValueError as error:
        raise UserError(f"key 'model.spec' is {model.spec!r}: {error}") from error
    if spec.is_rigid:
        raise UserError(
            f"key 'model.spec' is {model.spec!r}, which changes nothing; expected null, or one or more of depthwise, "
            "pointwise, experts, dcn, dense_dcn and dilate_last"
        )
    model.spec = spec.changed()


def _is_range(pair: list[float] | None, top: float = float("inf")) -> bool:
    return pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)
