"""Checkpoints of tiny models that nobody trained, with known offsets; shared by the tests of what is learnt."""

import csv

import torch
from torch import nn

from dk_bench.config import load_config, to_dict
from dk_bench.nn import OffsetGenerator
from dk_bench.training import build_model

CLASSES = ["triangle", "star", "ring", "cross"]


def planted(model: nn.Module, seed: int) -> None:
    """Gives every offset generator a bias of its own, multiples of 1/64, so that all offsets are it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, OffsetGenerator):
                module.bias.copy_(torch.randint(-96, 97, module.bias.shape, generator=generator) / 64)


def checkpoint(path, name: str, *, seed: int = 0, plant: bool = True, size: int = 32):
    """Writes what training would leave of a model of that name, and returns the path."""
    config = load_config(
        None,
        [f"model.name={name}", f"seed={seed}", f"data.size={size}", "data.crop_pct=1", "data.procedural.classes=4"],
    )
    torch.manual_seed(seed)
    model = build_model(config.model, len(CLASSES))
    if plant:
        planted(model, seed)
    else:
        for module in model.modules():
            if isinstance(module, OffsetGenerator):
                nn.init.normal_(module.weight, std=0.1)
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    held = {"config": to_dict(config), "classes": CLASSES, "run_id": f"{name}-s{seed}"}
    torch.save({"hyper_parameters": held, "state_dict": weights}, path)
    return path


def read_csv(path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
