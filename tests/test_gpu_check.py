"""tools/gpu_check.sh as far as a machine without a GPU goes: what it imports, and what it leaves where parts fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parent.parent / "tools"
# What a bare GPU machine lacks of what this one may have.
LACKING = ("wandb", "mmcv", "mmdet", "mmengine", "pycocotools", "faster_coco_eval", "statsmodels")
BLOCK = f"""
import sys
class Lacking:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {LACKING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking)
"""


@pytest.fixture
def bare(tmp_path):
    """The environment of a machine without those packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(tmp_path), str(TOOLS.parent)])
    return {**os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU: it would take minutes")
def test_leaves_a_summary_where_parts_fail(bare, tmp_path):
    environment = {**bare, "PARTS": "tests memcheck bench", "PROCESSES": "0"}
    done = subprocess.run(
        ["bash", TOOLS / "gpu_check.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tests"]["status"] == 0, (out / "tests.log").read_text()  # all skipped
    assert summary["bench"]["status"] == 1 and "Traceback" in (out / "bench.log").read_text()
    assert summary["memcheck"]["status"] != 0 and (out / "sanitizer.log").exists()  # no tool, or no GPU
    assert "build" not in summary and "gpu" in summary


def test_small_set_for_the_sanitizer(bare):
    done = subprocess.run(
        [sys.executable, TOOLS / "gpu_small.py", "cpu"], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
