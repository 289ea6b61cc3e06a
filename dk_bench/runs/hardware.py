"""What a run's numbers depend on besides code and configuration: the device, the instruction sets that libraries chose
on it, and how CUDA was set. Rounding differs between these, and after some epochs a run differs as between seeds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dk_bench.runs.environment import collect_device
from dk_bench.runs.machine import HOLDING, instruction_sets, processor

DRIVER = Path("/proc/driver/nvidia/version")


def collect_hardware(device: Any = None, devices: int = 1) -> dict[str, Any]:
    """`collect_device`, and: how many ``devices`` train together, the processor with its flags, the instruction sets
    that torch, oneDNN, MKL and our library chose, what of the environment held them, and, of a GPU, `cuda_settings`.

    What the system does not tell is None or left out.
    """
    told = processor()
    found = collect_device(device)
    held = {name: os.environ[name] for name in HOLDING if name in os.environ}
    return {
        **found,
        "devices": devices,
        "processor": told | {"flags": " ".join(told["flags"])},
        "instruction_sets": instruction_sets(),
        **({"held_by": held} if held else {}),
        **({"cuda": cuda_settings(device)} if found["type"] == "cuda" else {}),
    }


def cuda_settings(device: Any = None) -> dict[str, Any]:
    """Versions of driver, runtime and cuDNN, the device's compute capability, and the settings of this process that
    change numbers: the precision of float32 in matrix products and convolutions ("tf32" where they round to it),
    whether only deterministic algorithms run, and whether cuDNN tries which one is fastest."""
    import torch

    return {
        "driver": _driver(),
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "float32_products": "tf32" if torch.get_float32_matmul_precision() != "highest" else "float32",
        "float32_convolutions": "tf32" if torch.backends.cudnn.allow_tf32 else "float32",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _driver() -> str | None:
    try:
        found = re.search(r"\b(\d+\.\d+(\.\d+)*)\b", DRIVER.read_text())
    except OSError:  # no Linux, or a container that does not show it
        return None
    return found and found[1]
