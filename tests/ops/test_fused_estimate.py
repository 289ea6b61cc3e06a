"""What a fused CUDA kernel would promise: the estimate follows from what it counted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("fused_estimate", ROOT / "tools" / "fused_estimate.py")
assert SPEC is not None and SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)
RECORD = json.loads(tool.RECORD.read_text(encoding="utf-8"))

NOTHING = dict.fromkeys(("preparing", "vector", "tap", "block"), 0.0)
SASS = """
  /*0000*/ S2R R0 ; /*0010*/ IADD R1 ;
  /*0020*/ LDG R2 ; /*0030*/ STS R2 ; /*0040*/ @P0 BRA 0x20 ;
  /*0050*/ LDS R3 ; /*0060*/ FFMA R4 ; /*0070*/ FFMA R5 ; /*0080*/ FFMA R6 ; /*0090*/ FFMA R7 ; /*00a0*/ @P1 BRA 0x50 ;
  /*00b0*/ LDS R3 ; /*00c0*/ FFMA R4 ; /*00d0*/ FFMA R5 ;
  /*00e0*/ @P2 BRA 0x10 ; /*00f0*/ EXIT ; /*0100*/ NOP ;
"""


def test_record_follows_from_its_counts():
    assert tool.make_record(RECORD["instructions of a warp"]) == RECORD


def test_instructions_are_counted_by_loops():
    """Two taps a turn: what is behind the loop for an odd one does not run."""
    assert tool.count_instructions(SASS, 2) == {"preparing": 3, "vector": 3.0, "tap": 0, "block": 4}


def test_instructions_around_a_sum_are_counted_by_taps():
    looped = SASS.replace("/*00e0*/", "/*00d8*/ @P3 BRA 0x48 ; /*00e0*/")  # around the sums alone
    assert tool.count_instructions(looped, 4) == {"preparing": 3, "vector": 6.0, "tap": 4, "block": 4}


def test_a_shape_by_hand():
    """Of 64 images of 256 channels, 14 x 14: blocks of four warps, of which each takes 32 vectors at a position."""
    counted = {name: NOTHING | {"vector": 100.0} for name in tool.KERNELS}
    counted["unfold"] = {"preparing": 300, "vector": 100.0, "tap": 0, "block": 50}
    row = tool.estimate(counted, "bfloat16", 256, 14, backward=False)
    blocks = 64 * 14 * 14 // 4 * 2  # of 4 positions and half of the channels; 36 lanes prepare their taps
    rate = 132 * 4 * 1.83e3  # a microsecond
    unfold, fold = blocks * (4 * (9 * 100 + 50) + 2 * 300) / rate, blocks * 4 * 900 / rate
    product, column_bytes, image_bytes = 2 * 64 * 14**2 * 16 * 256**2 / (0.65 * 989e6), 64 * 14**2 * 16 * 512, 6422528
    assert (row["unfold, us"], row["fold, us"]) == pytest.approx((unfold, fold), abs=0.1)
    assert row["offsets, us"] == row["fold, us"]  # half of the blocks, twice the vectors
    assert row["products, us"] == pytest.approx(product, abs=0.1)
    moved = (column_bytes + image_bytes) / 3.35e6  # two pieces of two kernels
    assert row["pieces of 64 MiB, us"] == pytest.approx(max(unfold, moved) + max(product, moved) + 12, abs=0.1)
    moved = max(image_bytes / 3.35e6, (column_bytes + image_bytes) / 5.5e6)  # four pieces
    assert row["pieces of 25 MiB, us"] == pytest.approx(max(unfold, moved) + max(product, moved) + 24, abs=0.1)
    assert row["fused, nothing overlapped, us"] == pytest.approx(unfold + product + 3, abs=0.1)
    assert row["fused, all overlapped, us"] == pytest.approx(max(unfold, product) + 3, abs=0.1)
