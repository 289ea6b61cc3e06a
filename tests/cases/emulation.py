"""Compiles and loads CUDA kernels for the emulator on the host (tests/emulated/emulator.h)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch
from filelock import FileLock
from torch.autograd.function import once_differentiable

SOURCES = Path(__file__).parents[1] / "emulated"


def load_emulated(name: str, tmp_path_factory, *, watch: bool = False) -> None:
    """Compiles tests/emulated/<name>.cpp, once for all processes of a test run, and loads its operators.

    With ``watch`` its accesses to memory are told to tests/emulated/watch.cpp, which raises on races.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    library, torch_folder = folder / f"emulated_{name}.so", Path(torch.__file__).parent
    compiler = [
        os.environ.get("CXX", "c++"),
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-attributes",
        "-fPIC",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        '-DDK_DEVICE_HEADER="emulator.h"',
        f"-I{SOURCES}",
        f"-I{torch_folder}/include",
    ]
    link = ["-shared", "-o", str(library), f"-L{torch_folder}/lib", "-ltorch_cpu", "-ltorch", "-lc10"]
    source = str(SOURCES / f"{name}.cpp")
    with FileLock(f"{library}.lock"):
        if not library.exists() and watch:
            instrumented = str(library.with_suffix(".o"))
            run([*compiler, "-fsanitize=thread", "-Wno-tsan", "-c", source, "-o", instrumented])
            run([*compiler, instrumented, str(SOURCES / "watch.cpp"), *link])
        elif not library.exists():
            run([*compiler, source, *link])
    torch.ops.load_library(str(library))


def emulated_function(library: str, operands: int, constants: tuple[int, ...] = ()) -> type[torch.autograd.Function]:
    """An operator by the emulated kernels ``torch.ops.<library>.forward`` and ``backward``.

    Its first ``operands`` arguments are tensors, of which ``constants`` get no gradient. ``determinism`` is what the
    backward operator is asked for: whether it must be deterministic, and whether to warn alone.
    """

    class Emulated(torch.autograd.Function):
        determinism = (False, False)

        @staticmethod
        def forward(ctx, *arguments):
            ctx.save_for_backward(*arguments[:operands])
            ctx.settings = arguments[operands:]
            return getattr(torch.ops, library).forward(*arguments)

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            given = ctx.saved_tensors
            found = getattr(torch.ops, library).backward(grad, *given, *ctx.settings, *Emulated.determinism)
            differentiable = [i for i in range(operands) if i not in constants]
            gradients = dict(zip(differentiable, found, strict=True))
            kept = (gradients.get(i) if t is not None else None for i, t in enumerate(given))
            return *kept, *(None for _ in ctx.settings)

    return Emulated


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
