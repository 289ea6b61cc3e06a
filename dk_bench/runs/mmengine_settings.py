"""The settings that can change results in a configuration of mmengine's form, plain data. Needs none of its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# All else says where files are written, what is printed, or is an intermediate of the configuration's own.
OF_THE_CELL = (
    "model data_preprocessor train_dataloader val_dataloader train_cfg val_cfg optim_wrapper param_scheduler load_from "
    "sync_bn trainer data_name"
).split()
LOADERS = ("train_dataloader", "val_dataloader")
OF_THE_MACHINE = ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "timeout")  # of loaders


def is_mmengines(config: Mapping[str, Any]) -> bool:
    """Tells whether a plain configuration has mmengine's form, not that of `dk_bench.config`."""
    return "train_dataloader" in config


def mmengine_cell(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of the configuration that makes its cell, see `dk_bench.runs.identity`.

    Where images lie does not count where ``data_name`` says which they are. A list of sections, as a pipeline is,
    becomes sections named by their numbers, so that two cells can be told apart by the key in which they differ.
    """
    cell = {key: config[key] for key in OF_THE_CELL if config.get(key) is not None}
    for loader in LOADERS:
        cell[loader] = {key: value for key, value in cell.get(loader, {}).items() if key not in OF_THE_MACHINE}
    scale = config.get("auto_scale_lr") or {}
    if scale.get("enable"):
        cell["auto_scale_lr"] = scale
    devices = str((config.get("trainer") or {}).get("devices", "auto"))
    if devices.isdigit() and int(devices) > 1:
        cell["processes"] = int(devices)  # mmdet's batch size is a device's
    return _sections(cell, () if config.get("data_name") is None else ("data_root",))


def _sections(value: Any, left_out: tuple[str, ...]) -> Any:
    """Returns a value with lists of sections as sections, and without some keys."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, Mapping):
        return {key: _sections(item, left_out) for key, item in value.items() if key not in left_out}
    return value
