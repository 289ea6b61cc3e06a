"""timm's hub layout, ``config.json`` and ``model.safetensors``: what ``timm.create_model`` reads by ``local-dir:`` from
a folder and by ``hf-hub:`` from the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.trained.load import Trained

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # timm's names
# Of a model of timm's these tell of other weights, and of pixels that its authors advise for those.
OTHERS = ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size")
OTHERS += ("license", "origin_url", "paper_name", "paper_ids", "tag", "notes")
DEFORMED_BY = ("base", "spec")  # arguments of what `dk_bench.deform` made
TOLERANCE = 1e-6  # of the largest output


def write(trained: Trained, folder: Path) -> list[str]:
    """Writes the layout into a folder and returns the names of its files.

    Weights, architecture and arguments are the model's, as timm's own ``save_for_hf`` writes them; of a model that
    `dk_bench.deform` made they are ``dk_deformed``, base and spec, so that ``import dk_bench`` is all that reading
    takes. Classes' names, size, crop, mean and deviation are those of the run's evaluation, all of which timm's
    ``create_transform`` knows. The model is then made from the folder, and both must compute the same.

    Raises UserError for what is no timm model, and where timm makes another model of what was written.
    """
    model = trained.model
    if not isinstance(getattr(model, "pretrained_cfg", None), dict) or not hasattr(model, "reset_classifier"):
        raise UserError(f"--format timm: a {type(model).__name__} is no model of timm's; expected a classifier")
    described = {"pretrained_cfg": pixels(trained), "label_names": list(trained.classes)}
    if len(trained.classes) != model.num_classes:
        described.pop("label_names")
    try:
        # The arguments are the model's own already where timm (from 1.0.31 on) keeps those.
        made_with = {name: value for name, value in getattr(model, "_model_args", {}).items() if name in DEFORMED_BY}
        save_for_hf(model, folder, described, model_args=made_with, safe_serialization=True)
    except (RuntimeError, ValueError) as error:  # tensors that are one in memory; an argument that is not plain data
        raise UserError(f"--format timm: {' '.join(str(error).split())[:300]}") from error
    except SafetensorError as error:  # a full disk, of which it raises no OSError
        raise OSError(str(error).removeprefix("Error while serializing: I/O error: ")) from error
    _check(model, folder)
    return [CONFIG, WEIGHTS]


def pixels(trained: Trained) -> dict[str, Any]:
    """Returns timm's words for the pixels that the model sees in evaluation, as ``pretrained_cfg`` has them. Of a model
    without a run's checkpoint its own already say it."""
    if not trained.checkpoint:
        return {}
    data = tasks.from_checkpoint(trained.checkpoint, source=trained.path).config.data
    cfg = {
        "input_size": (3, data.size, data.size),
        "interpolation": "bilinear",
        "crop_pct": data.crop_pct,
        "crop_mode": "center",
        "mean": tuple(data.mean),
        "std": tuple(data.std),
    }
    return cfg | {key: None for key in OTHERS if trained.model.pretrained_cfg.get(key) is not None}


@torch.no_grad()
def _check(model: nn.Module, folder: Path) -> None:
    """Raises UserError where timm makes another model of a folder than the one that was written there."""
    try:
        made = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--format timm: timm {timm.__version__} cannot make the model again: {reason}") from error
    size = made.pretrained_cfg["input_size"]
    images = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    expected, found = model(images), made(images)
    if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item())):
        off = (found - expected).abs().max().item()
        raise UserError(f"--format timm: timm makes another model of the weights: its outputs are off by {off:.2g}")
