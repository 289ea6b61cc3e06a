"""Which cell a configuration belongs to: the settings that change results, by their dotted keys.

Identity is computed from a configuration whenever it is needed. The ``config_hash`` a record holds only says what it
was when the run began: records written under older rules are grouped by what their configuration gives today.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dk_bench.config import Config, RunConfig
from dk_bench.runs.environment import portable

# What the trained model is tested on, which training does not see.
TESTS = (
    "data.test data.procedural.test_images data.procedural.shifts.scale_up data.procedural.shifts.scale_down "
    "data.procedural.shifts.rotation data.procedural.shifts.bend".split()
)
# What tells runs of one cell apart, how a run is called and where it writes, where images lie, how fast it goes, and
# `TESTS`.
NOT_OF_THE_CELL = frozenset(
    "seed output name logger wandb.mode wandb.project wandb.log_model data.root data.workers data.prefetch data.cache "
    "data.cache_gb trainer.accelerator trainer.devices trainer.num_nodes trainer.strategy "
    "trainer.checkpoint_every_n_steps trainer.compile".split()
) | set(TESTS)

# Of a configuration of mmengine's form, plain data: the settings that can change results. All else says where files are
# written, what is printed, or is an intermediate of the configuration's own.
OF_THE_CELL = (
    "model data_preprocessor train_dataloader val_dataloader train_cfg val_cfg optim_wrapper param_scheduler load_from "
    "sync_bn trainer data_name"
).split()
# Of its custom_hooks: those that change what is trained or evaluated; all others watch.
HOOKS_OF_THE_CELL = frozenset("EMAHook PipelineSwitchHook SetEpochInfoHook YOLOXModeSwitchHook".split())
OF_THE_MACHINE = ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "timeout")  # of loaders


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested sections; an empty section gives nothing."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


DEFAULTS: dict[str, Any] = dict(flatten(dataclasses.asdict(Config())))


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a dotted key of a plain configuration, or the schema's default where it has none."""
    return dict(flatten(config)).get(key, DEFAULTS.get(key))


def cell_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a plain configuration that can change results, but for defaults, by their dotted keys.

    A key that the schema got later stands at its default in older configurations, and so changes none of them. Paths
    of the images do not count where ``data.name`` says which images they are, the number of devices only where each
    normalises by its own statistics, and the configuration says that they are several.
    """
    flat = dict(flatten(portable(mmengine_cell(config) if is_mmengines(config) else config, distinct=True)))
    ignored = set(NOT_OF_THE_CELL)
    if not _split_counts(flat):
        ignored |= {"data.train", "data.val", "data.class_names"}
    kept = {
        key: _plain(value)
        for key, value in flat.items()
        if key not in ignored and (key not in DEFAULTS or value != DEFAULTS[key])
    }
    several = not is_mmengines(config) and is_per_device(config) and devices_asked(config) > 1
    return kept | ({"trainer.devices": devices_asked(config)} if several else {})


def devices_asked(config: Mapping[str, Any]) -> int:
    """Tells how many devices a plain configuration asks for, on all machines together; 1 where that is left to the
    machine or the launcher."""
    devices, machines = (str(setting(config, f"trainer.{key}")) for key in ("devices", "num_nodes"))
    named = len([number for number in devices.split(",") if number.strip()]) if "," in devices else 1
    return (int(devices) if devices.isdecimal() else named) * (int(machines) if machines.isdecimal() else 1)


def is_per_device(config: Mapping[str, Any]) -> bool:
    """Tells whether another number of devices trains otherwise: each has own statistics, mixes its own images with each
    other, or, under mmengine, has a batch of its own."""
    if is_mmengines(config) or not setting(config, "trainer.sync_batchnorm"):
        return True
    return any(setting(config, f"data.augment.{name}") for name in ("mixup", "cutmix"))


def config_hash(config: Mapping[str, Any]) -> str:
    """Names the cell of a plain configuration: 12 hex digits of SHA-256 over `cell_settings`.

    The same for every seed and on every machine, whatever the order of keys, and for the configuration a record holds
    as for the one the run was given. Raises TypeError for values JSON cannot hold, ValueError for NaN and infinity.
    """
    text = json.dumps(cell_settings(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_folder(run: RunConfig, values: Mapping[str, Any]) -> Path:
    """Tells where a run keeps record, checkpoint and lock: the same for the same name, cell and seed, so that it finds
    its own. ``values`` is the whole configuration, plain data; ``run`` gives output, name and seed."""
    return Path(run.output) / f"{run.name}-{config_hash(values)}-s{run.seed}"


def is_mmengines(config: Mapping[str, Any]) -> bool:
    """Tells whether a plain configuration has mmengine's form, not that of `dk_bench.config`."""
    return "train_dataloader" in config


def mmengine_cell(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of the configuration that makes its cell.

    Where images lie does not count where ``data_name`` says which they are. A list of sections, as a pipeline is,
    becomes sections named by their numbers, so that two cells can be told apart by the key in which they differ.
    """
    cell = {key: config[key] for key in OF_THE_CELL if config.get(key) is not None}
    for loader in ("train_dataloader", "val_dataloader"):
        cell[loader] = {key: value for key, value in cell.get(loader, {}).items() if key not in OF_THE_MACHINE}
    hooks = config.get("custom_hooks") or ()
    if acting := [hook for hook in hooks if str(hook.get("type")).rpartition(".")[2] in HOOKS_OF_THE_CELL]:
        cell["custom_hooks"] = [{key: value for key, value in hook.items() if key != "priority"} for hook in acting]
    scale = config.get("auto_scale_lr") or {}
    if scale.get("enable"):
        cell["auto_scale_lr"] = scale
    if (devices := devices_asked(config)) > 1:
        cell["processes"] = devices  # mmdet's batch size is a device's
    return _sections(cell, () if config.get("data_name") is None else ("data_root",))


def _sections(value: Any, left_out: tuple[str, ...]) -> Any:
    """Returns a value with lists of sections as sections, and without some keys."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, Mapping):
        return {key: _sections(item, left_out) for key, item in value.items() if key not in left_out}
    return value


def _split_counts(flat: Mapping[str, Any]) -> bool:
    """Tells whether data.train and data.val say which images: as names of splits, or as paths of unnamed data."""
    if flat.get("data.source", DEFAULTS["data.source"]) != "timm":
        return False
    return bool(flat.get("data.reader")) or flat.get("data.name", DEFAULTS["data.name"]) == DEFAULTS["data.name"]


def _plain(value: Any) -> Any:
    """Returns a number in one form: W&B's server sends 4.0 as 4."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
