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


def test_record_follows_from_its_counts():
    assert tool.make_record(RECORD["instructions of a thread"]) == RECORD


def test_a_shape_by_hand():
    """Of 64 images of 128 channels, a thread for 4 of these: 100 instructions a tap, and nothing else."""
    row = tool.estimate({"coefficients": 0, "sums": 100.0, "beside taps": 0}, 128, 28, "bfloat16")
    instructions = 64 * 28 * 28 * 32 * 9 * 100 / 32
    assert row["unfolding, us"] == pytest.approx(instructions / (132 * 4 * 1.755e9) * 1e6, abs=0.1)
    assert row["products, us"] == pytest.approx(2 * 64 * 28 * 28 * 16 * 128 * 128 / (0.65 * 989e12) * 1e6, abs=0.1)
