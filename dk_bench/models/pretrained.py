"""What ``pretrained=True`` answers: no weights are published."""

from __future__ import annotations

import dataclasses
from typing import Any

from dk_bench.models.paper import MODELS

SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # of timm's pretrained_cfg


def names_weights(pretrained_cfg: Any, overlay: dict[str, Any] | None) -> bool:
    """Whether timm's ``pretrained_cfg`` or ``pretrained_cfg_overlay``, which users give, says where weights are."""
    given = dataclasses.asdict(pretrained_cfg) if dataclasses.is_dataclass(pretrained_cfg) else pretrained_cfg
    given = (given if isinstance(given, dict) else {}) | (overlay or {})
    return any(given.get(source) for source in SOURCES)


def refuse_pretrained(name: str, pretrained: bool) -> None:
    """Says how to get a deformed model with weights all the same.

    Raises:
        RuntimeError: pretrained is true.
    """
    if not pretrained:
        return
    model = MODELS[name]
    if model.spec.is_rigid:
        hint = "Load a checkpoint of your own with timm.create_model(..., checkpoint_path=...)."
    else:
        arguments = ", ".join(f"{key}={value!r}" for key, value in model.spec.changed().items())
        weights = "pretrained=True" if model.base == "mobilenetv2_100" else "checkpoint_path=..."
        hint = (
            "Deform a trained rigid model instead, which keeps what it computes, and fine-tune it: "
            f"dk_bench.deform(timm.create_model({model.base!r}, {weights}), dk_bench.KernelSpec({arguments}))"
        )
    raise RuntimeError(f"{name}: no pretrained weights are published. {hint}")
