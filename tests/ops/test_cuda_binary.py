"""What the compiler made of the CUDA kernels: architectures, registers, no spills, products, widths of accesses."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import dk_bench
from dk_bench.functional.loading import HAS_CUDA

PACKAGE = Path(dk_bench.__file__).parent
KERNELS = ("correlate", "scatter", "weight_gradient", "kernel_offset_gradient", "data_offset_gradient")


def cuobjdump(*arguments: str) -> str:
    """The tool is in the CUDA toolkit, and in triton, which torch brings."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump here")
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        if not tool.exists():
            pytest.skip("no cuobjdump here")
    (library,) = PACKAGE.glob("_cuda*.so")
    done = subprocess.run([tool, *arguments, library], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="the CUDA operators were not built")


def test_architectures():
    elfs = cuobjdump("--list-elf")
    assert "sm_80" in elfs and "sm_90" in elfs


def test_no_spills_and_few_registers():
    """A multiprocessor has 65,536: at 128 a thread it holds two blocks of 8 warps."""
    usage = cuobjdump("--dump-resource-usage")
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    fast = [f for f in found if any(f"{len(k)}{k}" in f[0] for k in KERNELS)]
    assert {k for k in KERNELS for f in fast if f"{len(k)}{k}" in f[0]} == set(KERNELS)
    for name, registers, stack, local in fast:
        assert int(local) == 0 and int(stack) == 0, f"{name}: {stack} bytes of stack, {local} of local memory"
        most = 255 if re.search(r"(offset|weight)_gradientIf", name) else 128  # float32's operands have two parts
        assert int(registers) <= most, f"{name}: {registers} registers"


@functools.cache
def disassemble(architecture: str) -> dict[str, str]:
    """The SASS of every kernel, by its mangled name."""
    sass = cuobjdump("-sass", "-arch", architecture)
    return dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, flags=re.DOTALL))


def count_of(instruction: str, loop: list[str]) -> int:
    return sum(re.search(rf"\b{instruction}\b", text) is not None for text in loop)


def tightest_loop(body: str, instruction: str) -> list[str]:
    """The instructions of the loop that has fewest for one of a kind, which is an innermost one."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", body)
    code = [(int(address, 16), text) for address, text in found if not text.startswith("NOP")]
    loops = []
    for address, text in code:
        jump = re.search(r"BRA.*0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            loops.append([t for a, t in code if int(jump[1], 16) <= a <= address])
    return min(loops, key=lambda loop: len(loop) / (count_of(instruction, loop) or 1e-9))


def body_of(kernel: str, architecture: str = "sm_90") -> str:
    (body,) = (body for name, body in disassemble(architecture).items() if kernel in name)
    return body


def count_widths(instruction: str, body: str) -> Counter[str]:
    """How many loads or stores there are of every width, as the SASS calls it: 32 bits have no name."""
    found = re.findall(rf"\b{instruction}((?:\.\w+)*) ", body)
    return Counter(re.sub(r"\.(?!U8|U16|64|128)\w+|\.", "", suffixes) for suffixes in found)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_tensor_core_is_used(architecture):
    """Every product is an HMMA with float32 sums: of TF32, or in sampled kernels of float16 of that."""
    functions = disassemble(architecture)
    for kernel in KERNELS:
        bodies = {name: body for name, body in functions.items() if f"{len(kernel)}{kernel}I" in name}
        assert bodies, kernel
        for name, body in bodies.items():
            half = "Half" in name and kernel in ("correlate", "scatter", "data_offset_gradient")
            products = set(re.findall(r"HMMA\.[\w.]+", body))
            assert products == {"HMMA.16816.F32" if half else "HMMA.1688.F32.TF32"}, name


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_width_of_stores(architecture):
    """What has adjacent channels is stored 16 bytes at a time: results, and the weight gradient's shares."""
    for name, body in disassemble(architecture).items():
        stores = count_widths("STG", body)
        if "15weight_gradientI" in name:
            assert stores == {"128": 4}, name
        if "9correlateI" in name:
            assert set(stores) == {"128"}, name


@pytest.mark.parametrize(
    "kernel, width, loads",  # of the weight, 4 x 4, by a lane: channels' rows or halves of rows
    [
        ("9correlateIN3c104HalfELi1ELb0ELb1E", ".64", 8),
        ("9correlateIN3c108BFloat16ELi2ELb0ELb1E", ".64", 8),
        ("22kernel_offset_gradientIN3c108BFloat16ELi2ELb0E", "", 16),
        ("22kernel_offset_gradientIfLi2ELb0E", ".64", 8),
    ],
)
def test_width_of_weight_loads(kernel, width, loads):
    """A dense weight of scope 4 x 4 is read by several values at a time."""
    read_only = Counter(re.findall(r"LDG\.E([\w.]*)\.CONSTANT", body_of(kernel)))
    del read_only[".128"]  # pixels
    assert read_only == {width: loads}


@pytest.mark.parametrize(
    "kernel, products, most",  # of a tap and 512 values of the data: 16 positions or 8, and 32 channels or 64
    [
        ("9correlateIN3c108BFloat16ELi2ELb0ELb1E", 8, 60),
        ("9correlateIN3c108BFloat16ELi2ELb0ELb0E", 8, 60),
        ("9correlateIN3c104HalfELi1ELb0ELb1E", 8, 60),
        ("15weight_gradientIN3c108BFloat16ELb0ELb1E", 8, 85),
        ("22kernel_offset_gradientIN3c108BFloat16ELi2ELb0E", 8, 110),
    ],
)
def test_instructions_of_a_tap(kernel, products, most):
    """What a warp issues for a tap in the passes of local DK, 16 bits, scope 4: there instructions are the limit."""
    loop = tightest_loop(body_of(kernel), "HMMA")
    assert len(loop) * products / count_of("HMMA", loop) <= most


def test_kernels_for_every_image():
    """No spills, registers for three blocks of 8 warps, and vectors of channels read and written 16 bytes at a time."""
    usage = cuobjdump("--dump-resource-usage")
    found = re.findall(r"Function \S+per_image_\S+:\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(found) == 2 * 3 * 4 * 2  # architectures, kernels, dtypes, single channels and vectors
    assert {value for _, *stack in found for value in stack} == {"0"}
    assert max(int(registers) for registers, *_ in found) <= 80
    vectors = {n: body for n, body in disassemble("sm_90").items() if re.search(r"per_image_\w+Li[248]E", n)}
    assert len(vectors) == 3 * 4
    for name, body in vectors.items():
        assert count_widths("LDG", body)["128"] >= 3, name
        assert "weight_gradient" in name or count_widths("STG", body) == {"128": 1}, name


UNFOLDING = {"fill_columns": 4, "gather_pixels": 2, "scatter_to_pixels": 2, "sum_offset_gradients": 4}  # a dtype's


def test_kernels_that_unfold():
    """No spills, registers for twelve warps or more, and vectors of channels read and written at once."""
    usage = cuobjdump("--dump-resource-usage")
    found = re.findall(r"Function (\S+6unfold\S+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(found) == 2 * 4 * sum(UNFOLDING.values())  # architectures and dtypes
    assert {value for _, _, *stack in found for value in stack} == {"0"}
    for name, registers, *_ in found:
        assert int(registers) <= (168 if "Idd" in name else 128), name
    for name, body in disassemble("sm_90").items():
        if not re.search(r"6unfold\S+Li[24]E", name):
            continue
        wide = "64" if re.search("Half|BFloat16", name) else "128"
        stores, loads = count_widths("STG", body), count_widths("LDG", body)
        if "fill_columns" in name:
            assert set(stores) == {wide} and loads[wide] >= 3, name
        else:
            assert loads[wide] >= 4 and ("offset" in name or set(stores) == {"128"}), name


@pytest.mark.parametrize(
    "kernel, count, most",  # FFMAs and instructions of a warp for a tap, or for one that has read a pixel
    [
        ("12fill_columnsIN3c108BFloat16EfLi4ELb0E", 64, 100),
        ("12fill_columnsIffLi4ELb0E", 64, 95),
        ("13gather_pixelsIN3c108BFloat16EfLi4E", 16, 80),
        ("13gather_pixelsIffLi4E", 16, 55),
    ],
)
def test_instructions_of_unfolding_a_tap(kernel, count, most):
    """Of four channels a lane: 16 coefficients by 4 channels forward, 4 by 4 to a pixel."""
    loop = tightest_loop(body_of(kernel), "FFMA")
    assert len(loop) * count / count_of("FFMA", loop) <= most
