"""One loop for every task, checkpoints, and the names that users know from here. Begin with run.py."""

import importlib
from typing import Any

_PLACES = {
    "Diverged": "dk_bench.training.own_trainer",
    "LitClassifier": "dk_bench.classification.module",
    "build_model": "dk_bench.classification.timm_models",
    "evaluate": "dk_bench.tasks",
    "load_model": "dk_bench.classification.timm_models",
    "read_checkpoint": "dk_bench.training.checkpoint",
    "run_folder": "dk_bench.tasks",
    "train": "dk_bench.tasks",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Imports a name when it is asked for: what trains a task lies above this folder, and is slow to import."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
