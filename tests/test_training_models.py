"""Every kind of deformed model trains, by name."""

from __future__ import annotations

import pytest
import torch

from dk_bench.config import load_config
from dk_bench.models import TEST_MODELS
from dk_bench.training import run_folder, train

ONE_STEP = (
    "name=step", "wandb.mode=disabled", "data.size=32", "data.crop_pct=1", "data.workers=0", "data.batch_size=4",
    "data.procedural.train_images=4", "data.procedural.val_images=2", "data.procedural.classes=3", "optim.epochs=1",
    "optim.warmup_epochs=0",
)  # fmt: skip


@pytest.mark.parametrize("name", TEST_MODELS)
def test_model_trains(name, tmp_path):
    """One step by the defaults, channels_last among them."""
    config = load_config(None, [*ONE_STEP, f"output={tmp_path}", f"model.name={name}"])
    record = train(config)
    assert record.status == "finished" and len(record.metrics["epochs"]) == 1
    checkpoint = torch.load(run_folder(config) / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
