"""What of a detection configuration, mmengine's as plain data, can change results. Needs none of mmdet's packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# All else says where files are written, what is printed, or is an intermediate of the configuration's own.
OF_THE_CELL = (
    "model", "data_preprocessor", "train_dataloader", "val_dataloader", "train_cfg", "val_cfg", "optim_wrapper",
    "param_scheduler", "load_from", "sync_bn", "trainer", "data_name",
)  # fmt: skip
LOADERS = ("train_dataloader", "val_dataloader")
OF_THE_MACHINE = ("num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "timeout")  # of loaders


def is_detection(config: Mapping[str, Any]) -> bool:
    """Whether a plain configuration is mmengine's."""
    return "train_dataloader" in config


def detection_cell(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the configuration that makes its cell, see `dk_bench.results.identity`."""
    cell = {key: config[key] for key in OF_THE_CELL if config.get(key) is not None}
    for loader in LOADERS:
        cell[loader] = {key: value for key, value in cell.get(loader, {}).items() if key not in OF_THE_MACHINE}
    scale = config.get("auto_scale_lr") or {}
    if scale.get("enable"):
        cell["auto_scale_lr"] = scale
    devices = str((config.get("trainer") or {}).get("devices", "auto"))
    if devices.isdigit() and int(devices) > 1:
        cell["processes"] = int(devices)  # mmdet's batch size is a device's
    return cell
