"""Collects what numbers depend on besides code and configuration: the device, the instruction sets that libraries chose
on it, and how CUDA was set. Rounding differs between these, and after some epochs a run differs as between seeds."""

import os
import platform
import re
from pathlib import Path
from typing import Any

from dk_bench.runs.environment import told_by
from dk_bench.runs.processor import CPUS, HOLDING, caches, instruction_sets, processor

DRIVER = Path("/proc/driver/nvidia/version")


def collect_device(device: Any = None) -> dict[str, Any]:
    """Tells what a torch device is: its type, its product name, how many there are (CPU: cores) and threads in use; and
    which of our operators compute there, "compiled" or "reference".

    ``device`` defaults to the GPU where there is one, as training does.
    """
    import torch

    from dk_bench.functional.loading import operators_on

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        name, count = torch.cuda.get_device_name(device), torch.cuda.device_count()
    else:
        name, count = processor()["name"], os.cpu_count()
    return {
        "type": device.type,
        "name": name,
        "count": count,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "operators": operators_on(device.type),
    }


def collect_hardware(device: Any = None, devices: int = 1) -> dict[str, Any]:
    """Returns `collect_device`, how many ``devices`` train together, the processor with its flags, the instruction sets
    that torch, oneDNN, MKL and our library chose, what of the environment held them, and a GPU's `cuda_settings`.

    What the system does not tell is None or left out.
    """
    told, found, held = processor(), collect_device(device), _held()
    return {
        **found,
        "devices": devices,
        "processor": told | {"flags": " ".join(told["flags"])},
        "instruction_sets": instruction_sets(),
        **({"held_by": held} if held else {}),
        **({"cuda": cuda_settings(device)} if found["type"] == "cuda" else {}),
    }


def collect_machine(*, probe: bool = True) -> dict[str, Any]:
    """Returns what times depend on: the processor, caches, cores, torch's threads, the libraries' instruction sets.
    What the system does not tell is None or left out. ``probe=False`` leaves out oneDNN and MKL."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "caches": caches(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "governor": told_by(CPUS / "cpu0/cpufreq/scaling_governor") or None,
        "instruction_sets": instruction_sets(probe=probe),
        "held_by": _held(),
    }


def cuda_settings(device: Any = None) -> dict[str, Any]:
    """Returns the versions of driver, runtime and cuDNN, the device's compute capability, and the settings of this
    process that change numbers: the precision of float32 in matrix products and convolutions ("tf32" where they round
    to it), whether only deterministic algorithms run, and whether cuDNN tries which one is fastest."""
    import torch

    driver = re.search(r"\b(\d+\.\d+(\.\d+)*)\b", told_by(DRIVER))
    return {
        "driver": driver and driver[1],
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "float32_products": "tf32" if torch.get_float32_matmul_precision() != "highest" else "float32",
        "float32_convolutions": "tf32" if torch.backends.cudnn.allow_tf32 else "float32",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _held() -> dict[str, str]:
    """Returns what of the environment holds the libraries to an instruction set."""
    return {name: os.environ[name] for name in HOLDING if name in os.environ}
