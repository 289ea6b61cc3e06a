"""Compiles and loads CUDA kernels for the emulator on the host (ops/cuda/emulator.h)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch
from filelock import FileLock


def load_emulated(name: str, tmp_path_factory) -> None:
    """Compiles tests/emulated/<name>.cpp, once for all processes of a test run, and loads its operators."""
    source = Path(__file__).parent / "emulated" / f"{name}.cpp"
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    library, torch_folder = folder / f"emulated_{name}.so", Path(torch.__file__).parent
    with FileLock(f"{library}.lock"):
        if not library.exists():
            command = [
                os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-Wall", "-Werror", "-Wno-unknown-pragmas",
                "-Wno-attributes", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000",
                f"-I{torch_folder}/include", str(source), "-o", str(library), f"-L{torch_folder}/lib", "-ltorch_cpu",
                "-ltorch", "-lc10",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
    torch.ops.load_library(str(library))
