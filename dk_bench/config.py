"""Experiment configurations: one YAML file an experiment, checked against the dataclasses below.

A file may name another with ``base:`` (a path relative to itself) and then holds only what differs. Values come from
the dataclass defaults, then the bases, then the file, then ``key=value`` overrides; every layer is checked by itself,
so that an error names its source, the key, the value and what is expected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dk_bench.errors import UserError
from dk_bench.models.spec import KernelSpec
from dk_bench.reading.overrides import Key, joined, put, split_override
from dk_bench.reading.values import Misread, UnknownKey, kinds_of, plain, read, read_text
from dk_bench.reading.yaml_words import read_words

DEVICES = re.compile(r"auto|-1|[1-9][0-9]*|[0-9]+(, ?[0-9]+)+|[0-9]+,")
PROJECT = re.compile(r"[^/\\#?%:]{0,128}", re.DOTALL)


@dataclass
class ModelConfig:
    """The model: a timm name, dk_bench's own included. The data decide the number of classes.

    Weights to start from are put into the rigid model, which is then deformed. A classifier of another number of
    classes starts anew. ``checkpoint`` tells cells apart as it is written: name one file one way, relative to the
    folder of the project, and a cell is the same on every machine.
    """

    name: str = "resnet50dw"
    spec: dict[str, Any] | None = None  # fields of dk_bench.KernelSpec that deform the rigid model named above
    pretrained: bool = False  # start from timm's weights of the rigid model; timm downloads them
    drop_path_rate: float = 0.0
    checkpoint: str | None = None  # weights to start from: what `train` left of this model or its rigid base
    kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model


@dataclass
class AugmentConfig:
    """Training augmentation."""

    scale: list[float] | None = field(default_factory=lambda: [0.08, 1.0])  # crop's share of the area; null: no crop
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # crop's width / height
    flip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.4  # of brightness, contrast and saturation; 0: none


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

    train_images: int = 4000
    val_images: int = 1000
    test_images: int = 0  # of the test set and of every shifted one; 0: none
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
    root: str | None = None  # for named data sets: where they lie
    train: str | None = None  # folder or tar with one folder a class; for named data sets: the split's name
    val: str | None = None
    test: str | None = None  # evaluated once, at the end of a run, and by dk-bench eval; null: none
    size: int = 224  # side of the square the network sees, pixels
    crop_pct: float = 0.875  # evaluation: resize the shorter side to size / crop_pct, then crop the centre
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    batch_size: int = 256  # of one step, over all devices
    workers: int = 4
    # Decoded images: auto (files beside the runs, which all of them share; memory without a run), memory, off (decoded
    # in every epoch), or a folder for such files. Nothing of it changes what the network sees.
    cache: str = "auto"
    cache_gb: float = 2.0  # a split that is larger than that, decoded, is not kept
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
    offset_lr_multiplier: int | float | str = "auto"  # int: W&B's agent writes 1.0 as 1


@dataclass
class EmaConfig:
    """Exponential moving average of the weights; it is what is then evaluated."""

    decay: float | None = None  # null: off


@dataclass
class TrainerConfig:
    """How the steps are computed."""

    precision: str = "32-true"  # Lightning's names: 16-mixed, bf16-mixed, ...
    accelerator: str = "auto"
    devices: int | str = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False  # several devices normalise by the statistics of the whole batch, not each by its own
    deterministic: bool = False  # only algorithms that are; on the CPU they all are
    checkpoint_every_n_steps: int | None = None  # besides the end of every epoch


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
    return _merge(_file_layers(Path(path)) if path is not None else [], overrides)


def config_from_dict(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    """Returns the configuration `to_dict` gave, as checkpoints hold it, and overrides. Raises as load_config does."""
    return _merge([(source, dict(values))], overrides)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain data: dicts, lists, strings, numbers."""
    return dataclasses.asdict(config)


def schema_annotation(key: Key) -> Any:
    """Tells what a key takes. Raises UnknownKey."""
    annotation: Any = Config
    for depth, part in enumerate(key):
        for kind in kinds_of(annotation):
            hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
            if part in hints:
                annotation = hints[part]
                break
            if kind is Any or isinstance(kind, tuple) and (kind[0] is dict or str(part).isdecimal()):
                annotation = Any if kind is Any else kind[1]
                break
        else:
            raise UnknownKey(joined(key[: depth + 1]))
    return annotation


def read_value(key: Key, text: str) -> Any:
    """Tells what the text of an override, or of a part of one, sets. Raises UserError."""
    try:
        return read_text(text, schema_annotation(key), joined(key))
    except UnknownKey as error:
        raise UserError(f"unknown key '{error.args[0]}'{_did_you_mean(error.args[0])}") from error
    except Misread as error:
        raise UserError(str(error)) from error


def _file_layers(path: Path, children: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content) of a file and its bases, the base first."""
    if path.resolve() in children:
        raise UserError(f"{path}: 'base' leads back to this file")
    content = read_words(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(plain(content)).__name__}")
    base = content.pop("base", None)
    if base is None:
        return [(str(path), content)]
    if not isinstance(base, str):
        raise UserError(f"{path}: key 'base' is {plain(base)!r}, expected the path of another configuration")
    return [*_file_layers(path.parent / base, (*children, path.resolve())), (str(path), content)]


def _merge(layers: Iterable[tuple[str, dict[str, Any]]], overrides: Iterable[str]) -> Config:
    values = dataclasses.asdict(Config())
    for source, content in layers:
        with _named(source):
            values = put(values, (), _without_empty(read(content, Config), Config))
    for override in overrides:
        key, text = split_override(override)
        with _named(override):
            annotation = schema_annotation(key)
            value = _without_empty(read_text(text, annotation, joined(key)), annotation)
            if value or not dataclasses.is_dataclass(annotation):
                values = put(values, key, value)
    config = _built(Config, values)
    _check_ranges(config)
    _check_spec(config.model)
    return config


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Turns what is wrong with a value into a UserError that names where it comes from."""
    try:
        yield
    except UnknownKey as error:
        raise UserError(f"{source}: unknown key '{error.args[0]}'{_did_you_mean(error.args[0])}") from error
    except Misread as error:
        raise UserError(f"{source}: {error}") from error


def _without_empty(value: Any, schema: Any) -> Any:
    """Returns a section of the schema without its empty sections, which set nothing; of other sections empty is a
    value.
    """
    if not dataclasses.is_dataclass(schema):
        return value
    hints = typing.get_type_hints(schema)
    parts = {name: _without_empty(item, hints[name]) for name, item in value.items()}
    return {name: item for name, item in parts.items() if item != {} or not dataclasses.is_dataclass(hints[name])}


def _built(schema: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(schema)
    return schema(
        **{
            name: _built(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


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


def _is_cache(value: str) -> bool:
    """Tells whether ``data.cache`` is one of its words or a folder, whose name is no other word for one of these."""
    words = {"auto", "memory", "off"}
    slips = words | {"on", "none", "null", "no", "yes", "false", "true", "file", "disk"}
    return value in words or (bool(value) and "\0" not in value and value.lower() not in slips)


def _check_ranges(config: Config) -> None:
    """Tells what a type cannot say. Raises UserError for the first key out of range."""
    data, optim, shapes = config.data, config.optim, config.data.procedural
    multiplier = optim.offset_lr_multiplier
    every = config.trainer.checkpoint_every_n_steps
    devices, wandb = config.trainer.devices, config.wandb
    rules = [
        ("name", config.name, _is_name(config.name), "a name that leaves a run's folder below output"),
        ("output", config.output, "\0" not in config.output, "a folder"),
        ("seed", config.seed, 0 <= config.seed < 2**32, "an integer from 0 to 2^32 - 1"),
        *((key, value, value != "", f"{what}, or null") for key, value, what in _places(config)),
        ("model.drop_path_rate", config.model.drop_path_rate, 0 <= config.model.drop_path_rate < 1, "0 to below 1"),
        (
            "model.pretrained",
            config.model.pretrained,
            not (config.model.pretrained and config.model.checkpoint),
            "false where model.checkpoint is set: the weights come from one of them",
        ),
        ("data.size", data.size, data.size >= 1, "at least 1 pixel"),
        ("data.crop_pct", data.crop_pct, 0 < data.crop_pct <= 1, "above 0 and up to 1"),
        ("data.mean", data.mean, len(data.mean) == 3, "three numbers"),
        ("data.std", data.std, len(data.std) == 3 and min(data.std) > 0, "three positive numbers"),
        ("data.batch_size", data.batch_size, data.batch_size >= 1, "at least 1"),
        ("data.workers", data.workers, data.workers >= 0, "0 (load in the training process) or more"),
        (
            "data.cache",
            data.cache,
            _is_cache(data.cache),
            "auto, memory, off, or a folder (./none for one that is named by such a word)",
        ),
        ("data.cache_gb", data.cache_gb, data.cache_gb >= 0, "gigabytes, 0 or more"),
        ("data.augment.scale", data.augment.scale, _is_range(data.augment.scale, 1), "two rising numbers in (0, 1]"),
        ("data.augment.ratio", data.augment.ratio, _is_range(data.augment.ratio), "two rising positive numbers"),
        ("data.augment.flip", data.augment.flip, 0 <= data.augment.flip <= 1, "a probability"),
        ("data.augment.color_jitter", data.augment.color_jitter, data.augment.color_jitter >= 0, "0 or more"),
        ("data.procedural.train_images", shapes.train_images, shapes.train_images >= 1, "at least 1"),
        ("data.procedural.val_images", shapes.val_images, shapes.val_images >= 1, "at least 1"),
        ("data.procedural.test_images", shapes.test_images, shapes.test_images >= 0, "0 (none) or more"),
        ("optim.lr", optim.lr, optim.lr > 0, "a positive number"),
        ("optim.epochs", optim.epochs, optim.epochs >= 1, "at least 1"),
        (
            "optim.warmup_epochs",
            optim.warmup_epochs,
            0 <= optim.warmup_epochs < optim.epochs,
            "0 to below optim.epochs",
        ),
        (
            "optim.offset_lr_multiplier",
            multiplier,
            multiplier == "auto" if isinstance(multiplier, str) else multiplier >= 0,
            "auto or a number from 0",
        ),
        ("ema.decay", config.ema.decay, config.ema.decay is None or 0 <= config.ema.decay < 1, "null or 0 to below 1"),
        (
            "wandb.project",
            wandb.project,
            wandb.mode == "disabled" or PROJECT.fullmatch(wandb.project),
            "up to 128 characters, none of / \\ # ? % :, as W&B has it",
        ),
        (
            "trainer.devices",
            devices,
            bool(DEVICES.fullmatch(devices)) if isinstance(devices, str) else devices >= 1 or devices == -1,
            "auto, a number of devices, -1 (all), or the numbers of some, as 0,2",
        ),
        ("trainer.checkpoint_every_n_steps", every, every is None or every >= 1, "null or at least 1"),
    ]
    for key, value, holds, expected in rules:
        if not holds:
            raise UserError(f"key '{key}' is {value!r}, expected {expected}")


def _places(config: Config) -> list[tuple[str, str | None, str]]:
    """(key, value, what it names) of texts that name something; an empty one, an unset variable of the shell's say,
    would pass for null."""
    data, images = config.data, "a folder, a tar or the name of a split"
    return [
        ("model.checkpoint", config.model.checkpoint, "a file"),
        ("data.root", data.root, "a folder"),
        ("data.train", data.train, images),
        ("data.val", data.val, images),
        ("data.test", data.test, images),
    ]


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


def _is_name(name: str) -> bool:
    parts = Path(name).parts
    fits = all(len(os.fsencode(part)) <= 200 for part in parts)  # of 255 bytes; hash and seed follow
    return fits and "\0" not in name and ".." not in parts and not Path(name).is_absolute()


def _is_range(pair: list[float] | None, top: float = float("inf")) -> bool:
    return pair is None or (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top)
