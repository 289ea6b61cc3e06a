"""Checkpoints and records as runs leave them, without the training."""

import json
from pathlib import Path

import torch

from dk_bench.classification.timm_models import build_model
from dk_bench.config import load_config, to_dict
from dk_bench.runs.record import new_record, write_record
from dk_bench.tasks import of
from dk_bench.training.weights import MODULE_STATE

CLASSES = ["cat", "dog", "Ei & Co", "été", "x" * 40]
SETTINGS = ("data.size=32", "data.crop_pct=0.9", "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.25]", "optim.epochs=2")


def moved(model):
    """The model with every weight and statistic off its start, offsets above all, which begin at zero."""
    random = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=random)
            value.add_(0.2 * noise if "running_var" in name else 0.1 * (noise - 0.5))
    return model.eval()


def run_of(folder, *overrides, seed=0, epochs=2, status="finished", error=None, top1=50.0):
    """Writes last.ckpt and record.json of a run that was never trained; returns its folder."""
    config = load_config(None, ["optim.warmup_epochs=0", *SETTINGS, f"seed={seed}", *overrides])
    folder = Path(folder)
    values, run_id = to_dict(config), f"{folder.name}-{seed}"
    figures = {"train/loss": 1.0, "val/loss": 1.5, "val/top1": top1, "val/top5": 90.0, "lr": 0.0, "seconds": 1.0}
    kept = [{"epoch": epoch, **figures} for epoch in range(epochs)]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "state_dict": moved(build_model(config.model, len(CLASSES))).state_dict(),
        MODULE_STATE: {},
        "hyper_parameters": {"config": values, "classes": CLASSES, "run_id": run_id},
        "callbacks": {"RunKeeper": {"epochs": kept}},
    }
    torch.save(checkpoint, folder / "last.ckpt")
    data = {"name": "photos", "classes": CLASSES, "train_images": 1200, "val_images": 40}
    described = of(config).describe_model(CLASSES)
    record = new_record(name="tiny", config=values, model=described, data=data, seed=seed, run_id=run_id)
    record.status, record.error, record.metrics["epochs"] = status, error, kept
    record.metrics["final"] = kept[-1] if status == "finished" else {}
    record.git, record.command = {"commit": "0" * 40, "dirty": False}, ["dk-bench", "train"]
    record.attempts[-1] |= {"git": record.git, "command": record.command}
    write_record(record, folder / "record.json")
    return folder


def changed(path, **values):
    """Changes the top of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
