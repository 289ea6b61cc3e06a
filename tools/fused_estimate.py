"""Estimates, without a GPU, what a fused CUDA kernel of dense deformable kernels could save over unfolding by pieces.

    python tools/fused_estimate.py [--count] [results/gpu/fused-estimate.json]

By pieces, the columns of a piece are written, and read again by the matrix product. A fused kernel would unfold into
shared memory and multiply there. It is estimated by arithmetic, forward, from the instructions of the unfolding kernel
that was compiled (--count counts them in the library and notes them in the record) and from the figures of a data
sheet (ASSUMED). No GPU has confirmed any of it. Prints a line a shape and writes the record.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

RECORD = Path(__file__).parents[1] / "results" / "gpu" / "fused-estimate.json"
ASSUMED = {
    "device": "H100 SXM",
    "multiprocessors": 132,
    "warp instructions per cycle and multiprocessor": 4,
    "GHz": 1.755,
    "memory, TB/s": 3.35,
    "level-2 cache, TB/s": 5.5,
    "peak, TFLOP/s": {"bfloat16": 989, "tf32": 495, "float32": 67},
    "share of the peak that products reach": 0.65,
    "output channels of a fused tile": 256,
}
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]  # ResNet-50's 3x3 convolutions: channels in and out, side
IMAGES, SAMPLES, TAPS, VECTOR = 64, 16, 9, 4  # VECTOR: channels of a thread
KERNELS = {"bfloat16": "12fill_columnsIN3c108BFloat16EfLi4ELb0", "float32": "12fill_columnsIffLi4ELb0"}


def disassemble() -> dict[str, str]:
    """Returns the SASS of the unfolding kernels in the library, by type."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        import triton

        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    (library,) = (Path(__file__).parents[1] / "dk_bench").glob("_cuda*.so")
    done = subprocess.run([tool, "-sass", "-arch", "sm_90", library], capture_output=True, text=True, check=True)
    functions = re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", done.stdout, flags=re.DOTALL)
    return {kind: body for kind, kernel in KERNELS.items() for name, body in functions if kernel in name}


def count_instructions(body: str) -> dict[str, float]:
    """Returns a thread's instructions for a tap's coefficients, for a tap's sums and beside taps, from the SASS."""
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", body)]
    jumps = [(int(found[1], 16), at) for at, text in code if (found := re.search(r"BRA.*0x([0-9a-f]+)", text))]
    loops = [[text for at, text in code if first <= at <= last] for first, last in jumps if first < last]
    *inner, around, whole = sorted(loops, key=len)  # around: the loop over taps, with both of the inner ones
    tables, sums = sorted(inner, key=products)
    taps = products(sums) / (SAMPLES * VECTOR)  # of one turn, unrolled
    return {"coefficients": len(tables), "sums": len(sums) / taps, "beside taps": len(whole) - len(around)}


def products(loop: list[str]) -> int:
    """Counts fused multiply-adds."""
    return sum("FFMA" in text for text in loop)


def estimate(instructions: dict[str, float], channels: int, side: int, kind: str) -> dict[str, float | str | int]:
    """Returns microseconds of each part and what fusing promises: at best, and if nothing overlaps."""
    positions, size = IMAGES * side * side, 2 if kind == "bfloat16" else 4
    columns, image = positions * SAMPLES * channels * size, positions * channels * size
    threads = channels / VECTOR
    issued = threads * (TAPS * instructions["sums"] + instructions["beside taps"]) + TAPS * instructions["coefficients"]
    per_second = ASSUMED["multiprocessors"] * ASSUMED["warp instructions per cycle and multiprocessor"] * ASSUMED["GHz"]
    issue = positions * issued / 32 / (per_second * 1e3)
    peak = ASSUMED["peak, TFLOP/s"][kind] * ASSUMED["share of the peak that products reach"]
    product = 2 * positions * SAMPLES * channels * channels / (peak * 1e6)
    pieces = {}
    for where in ("memory, TB/s", "level-2 cache, TB/s"):
        moved = columns / (ASSUMED[where] * 1e6)
        pieces[where] = max(issue, moved) + max(product, moved)
    tiles = -(-channels // ASSUMED["output channels of a fused tile"])  # each unfolds again
    ends = 2 * image / (ASSUMED["memory, TB/s"] * 1e6)
    best, worst = max(tiles * issue, product, ends), tiles * issue + product
    return {
        "channels": channels,
        "side": side,
        "dtype": kind,
        "unfolding, us": round(issue, 1),
        "products, us": round(product, 1),
        "by pieces, columns in memory, us": round(pieces["memory, TB/s"], 1),
        "by pieces, columns in the cache, us": round(pieces["level-2 cache, TB/s"], 1),
        "fused, all overlapped, us": round(best, 1),
        "fused, nothing overlapped, us": round(worst, 1),
        "promise at best": round(pieces["level-2 cache, TB/s"] / best, 2),
        "promise without overlap": round(pieces["level-2 cache, TB/s"] / worst, 2),
    }


def make_record(instructions: dict[str, dict[str, float]]) -> dict:
    """Returns the record of all shapes and types, for these instructions of a thread."""
    kinds = {"bfloat16": "bfloat16", "tf32": "float32", "float32": "float32"}
    rows = [estimate(instructions[of], *shape, kind) for kind, of in kinds.items() for shape in SHAPES]
    return {"assumed": ASSUMED, "instructions of a thread": instructions, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?", default=RECORD)
    parser.add_argument("--count", action="store_true", help="count instructions in the library, not in the record")
    arguments = parser.parse_args()
    if arguments.count:
        instructions = {kind: count_instructions(body) for kind, body in disassemble().items()}
    else:
        instructions = json.loads(arguments.record.read_text(encoding="utf-8"))["instructions of a thread"]
    record = make_record(instructions)
    for row in record["rows"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
