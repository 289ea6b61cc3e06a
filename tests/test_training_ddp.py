"""Training on two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from dk_bench.results.record import find_records, read_record
from dk_bench.training import load_model

OVERRIDES = (
    "model.name=test_resnetdw_dk", "wandb.mode=disabled", "data.size=32", "data.crop_pct=1", "data.workers=0",
    "data.batch_size=8", "data.procedural.train_images=26", "data.procedural.val_images=13",
    "data.procedural.classes=6", "optim.epochs=2", "optim.warmup_epochs=1", "optim.lr=0.05",
    "trainer.accelerator=cpu", "trainer.devices=2",
)  # fmt: skip


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_leave_one_record_and_one_model(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text("name: two\n")
    command = [sys.executable, "-m", "dk_bench", "train", str(config), *OVERRIDES, f"output={tmp_path}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = find_records([tmp_path])
    record = read_record(path)
    assert record.status == "finished" and len(record.metrics["epochs"]) == 2
    # 13 images on two processes: none counted twice.
    assert 13 * record.metrics["final"]["val/top1"] / 100 == pytest.approx(
        round(13 * record.metrics["final"]["val/top1"] / 100), abs=1e-3)
    model = load_model(path.parent / "last.ckpt")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
