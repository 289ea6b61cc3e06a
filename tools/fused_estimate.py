"""Estimates, without a GPU, what a fused CUDA kernel of dense deformable kernels could save over unfolding by pieces.

    python tools/fused_estimate.py [--count] [results/gpu/fused-estimate.json]

By pieces, columns are written, and read again by the next kernel. Fused ones would keep them in shared memory. Both are
estimated by arithmetic, from the instructions of the unfolding's kernels as compiled (--count counts them in the
library and notes them in the record) and from what ASSUMED says. No GPU has confirmed any of it. Prints a line a shape
and writes the record.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

from dk_bench.functional.scope_columns import cut

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "gpu" / "fused-estimate.json"
ASSUMED = {  # of an H100 SXM, whose data sheet has memory, peaks and the cache's size
    "multiprocessors": 132,
    "instructions that a multiprocessor issues a cycle": 4,  # each of a warp, always: nothing waits
    "GHz": 1.83,  # where the multiprocessors have the data sheet's peak in bfloat16
    "memory, TB/s": 3.35,
    "level-2 cache, TB/s": 5.5,  # of measurements by others
    "columns that stay in the level-2 cache, MiB": 25,  # half of it: other operands need some, and it has two parts
    "peak, TFLOP/s": {"bfloat16": 989, "tf32": 495, "float32": 67},
    "share of the peak that products reach": 0.65,  # of a fused kernel too
    "instructions that products issue, of all at their peak": {"bfloat16": 0, "tf32": 0, "float32": 1},
    "lost as a kernel starts and ends, us": 3,
    "host's time of a piece, us": {"forward": 20, "forward+backward": 70},  # as of tiny pieces on a CPU
    "output channels of a fused tile": 256,  # their sums take half of the registers; more tiles unfold anew
    "images": 64,
    "taps": 9,
    "samples": 16,
    "bounds of pieces, MiB": [64, 25],  # the default, and one whose columns stay in the cache
}
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]  # ResNet-50's 3x3 convolutions: channels in and out, side
KINDS = {"bfloat16": "bfloat16", "tf32": "float32", "float32": "float32"}  # of products: the dtype of memory
TYPES = {"bfloat16": "IN3c108BFloat16EfLi4E", "float32": "IffLi4E"}
KERNELS = {  # and their multiply-adds of a tap and a vector of channels
    "unfold": ("12fill_columns{}Lb0", 64),
    "fold": ("13gather_pixels{}E", 16),
    "offsets": ("20sum_offset_gradients{}Lb0", 16),
}
WARP, WARPS, VECTOR = 32, 4, 4  # lanes of a warp, warps of a block, channels of a lane: as ops/scope_unfold has them


def disassemble() -> dict[str, str]:
    """Returns the SASS of the library's functions."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        import triton

        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    (library,) = (ROOT / "dk_bench").glob("_cuda*.so")
    done = subprocess.run([tool, "-sass", "-arch", "sm_90", library], capture_output=True, text=True, check=True)
    return dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", done.stdout, flags=re.DOTALL))


def count_instructions(body: str, products: int) -> dict[str, float]:
    """Returns what a warp issues to prepare taps for its lanes, for a tap and a vector of channels, for a tap besides,
    and for a block besides; of branches all ways. ``products``: FFMAs of a tap and a vector."""
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", body)]
    code = [(at, text) for at, text in code if not text.startswith("NOP")]
    jumps = [(int(found[1], 16), at) for at, text in code if (found := re.search(r"BRA.*0x([0-9a-f]+)", text))]
    loops = sorted((to for to in jumps if to[0] < to[1]), key=lambda loop: loop[1] - loop[0])
    inner = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] for b in loops if b != a)]

    def within(first: int, last: int) -> list[str]:
        return [text for at, text in code if first <= at <= last]

    def count(loop: tuple[int, int]) -> int:
        return sum("FFMA" in text for text in within(*loop))

    tables, sums = sorted(inner, key=count)
    slots = next(a for a in loops if a[0] <= sums[0] and sums[1] <= a[1] and a != sums)
    own = len(within(*slots)) - len(within(*sums)) if tables[0] < slots[0] else 0  # around the sums alone
    turns = count(sums) / products  # of an unrolled loop; what is behind it for other numbers of taps does not run
    behind = [at for at, text in code if at > sums[1] and "FFMA" in text] if turns > 1 else []
    rest = len(within(sums[1] + 1, behind[-1])) if behind else 0
    block = len(code) - len(within(*tables)) - len(within(*sums)) - own - rest
    return {"preparing": len(within(*tables)), "vector": len(within(*sums)) / turns, "tap": own, "block": block}


def issue(kernel: str, counted: dict[str, float], channels: int, positions: int) -> float:
    """Returns the microseconds in which all instructions of a kernel are issued."""
    lanes = next(lanes for lanes in (8, 16, 32) if lanes * VECTOR >= channels or lanes == WARP)
    rows, chunks = WARP * WARPS // lanes, -(-channels // (lanes * VECTOR))
    turns, parts = (chunks, 1) if kernel == "offsets" else (1, chunks)  # a warp takes all channels, or some
    of_warp = counted["block"] + ASSUMED["taps"] * (counted["tap"] + turns * counted["vector"])
    preparing = -(-rows * ASSUMED["taps"] // WARP)  # warps: a lane for a tap of a position
    instructions = -(-positions // rows) * parts * (WARPS * of_warp + preparing * counted["preparing"])
    each = ASSUMED["multiprocessors"] * ASSUMED["instructions that a multiprocessor issues a cycle"]
    return instructions / (each * ASSUMED["GHz"] * 1e3)


def move(columns: float, others: float, cached: bool) -> float:
    """Returns the microseconds that bytes take, the columns' to the cache or to memory."""
    memory, cache = ASSUMED["memory, TB/s"] * 1e6, ASSUMED["level-2 cache, TB/s"] * 1e6
    return max(others / memory, (columns + others) / cache) if cached else (columns + others) / memory


def by_pieces(parts: dict[str, float], bound: int, channels: int, side: int, size: int, backward: bool) -> list[float]:
    """Returns the microseconds of unfolding and products, in turn, each bound by instructions or by bytes, which are
    read once: with what is lost between kernels, or the host's that starts them where it takes longer; and without."""
    image = ASSUMED["images"] * side**2 * channels * size
    pieces = cut(ASSUMED["images"], side**2, (bound << 20) // (ASSUMED["samples"] * channels * size))
    columns, of_piece = ASSUMED["samples"] * image, ASSUMED["samples"] * channels * size * pieces[0].positions
    fits = of_piece <= ASSUMED["columns that stay in the level-2 cache, MiB"] << 20
    once = move(columns, image, fits)
    kernels = [max(parts["unfold"], once), max(parts["products"], once)]
    if backward:  # unfolds anew, for the kernel's gradient; then columns' gradients go to the image's and the offsets'
        sums = move(columns, 8 * image / size, fits)  # float32, read and written
        kernels += [*kernels, max(parts["products"], once), max(parts["fold"], sums), max(parts["offsets"], once)]
    host = ASSUMED["host's time of a piece, us"]["forward+backward" if backward else "forward"]
    lost = len(kernels) * ASSUMED["lost as a kernel starts and ends, us"]
    return [max(sum(kernels) + len(pieces) * lost, len(pieces) * host), sum(kernels)]


def fused(parts: dict[str, float], kind: str, channels: int, side: int, size: int, backward: bool) -> list[float]:
    """Returns the microseconds of fused kernels, where all overlaps and where nothing does."""
    tiles = -(-channels // ASSUMED["output channels of a fused tile"])
    ends = move(0, 2 * ASSUMED["images"] * side**2 * channels * size, cached=False)
    share = ASSUMED["share of the peak that products reach"]
    share *= ASSUMED["instructions that products issue, of all at their peak"][kind]
    stages = [tiles * parts["unfold"]]
    if backward:
        stages += [*stages, parts["fold"] + parts["offsets"]]
    lost, product = ASSUMED["lost as a kernel starts and ends, us"], parts["products"]
    overlapped = [max(stage + share * product, product, ends) for stage in stages]
    return [sum(each) + lost * len(each) for each in (overlapped, [stage + product for stage in stages])]


def estimate(counted: dict, kind: str, channels: int, side: int, backward: bool) -> dict[str, float | str | int]:
    """Returns the microseconds of the parts and of both ways, and what fusing promises over the faster pieces."""
    positions, size = ASSUMED["images"] * side**2, 2 if kind == "bfloat16" else 4
    parts = {name: issue(name, counted[name], channels, positions) for name in KERNELS}
    peak = ASSUMED["peak, TFLOP/s"][kind] * ASSUMED["share of the peak that products reach"]
    parts["products"] = 2 * positions * ASSUMED["samples"] * channels**2 / (peak * 1e6)
    bounds = ASSUMED["bounds of pieces, MiB"]
    pieces = {bound: by_pieces(parts, bound, channels, side, size, backward) for bound in bounds}
    faster, lossless = (min(ways) for ways in zip(*pieces.values(), strict=True))
    overlapped, apart = fused(parts, kind, channels, side, size, backward)
    return {
        "mode": "forward+backward" if backward else "forward",
        "products in": kind,
        "channels": channels,
        "side": side,
        **{f"{name}, us": round(us, 1) for name, us in parts.items()},
        **{f"pieces of {bound} MiB, us": round(us, 1) for bound, (us, _) in pieces.items()},
        "fused, all overlapped, us": round(overlapped, 1),
        "fused, nothing overlapped, us": round(apart, 1),
        "promise at best": round(faster / overlapped, 2),
        "promise without overlap": round(faster / apart, 2),
        "promise without overlap, where pieces lose nothing": round(lossless / apart, 2),
    }


def make_record(counted: dict[str, dict[str, dict[str, float]]]) -> dict:
    """Returns the record of all modes, kinds of products and shapes, for these instructions of warps."""
    rows = [
        estimate(counted[of], kind, *shape, backward)
        for backward in (False, True)
        for kind, of in KINDS.items()
        for shape in SHAPES
    ]
    return {"assumed": ASSUMED, "instructions of a warp": counted, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?", default=RECORD)
    parser.add_argument("--count", action="store_true", help="count instructions in the library, not in the record")
    arguments = parser.parse_args()
    if arguments.count:
        functions, counted = disassemble(), {}
        for kind, of in TYPES.items():
            for name, (pattern, products) in KERNELS.items():
                (body,) = (body for mangled, body in functions.items() if pattern.format(of) in mangled)
                counted.setdefault(kind, {})[name] = count_instructions(body, products)
    else:
        counted = json.loads(arguments.record.read_text(encoding="utf-8"))["instructions of a warp"]
    record = make_record(counted)
    for row in record["rows"]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
