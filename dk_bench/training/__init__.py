"""Training and evaluating, and checkpoints. Begin with run.py."""

from dk_bench.classification.module import LitClassifier
from dk_bench.training.checkpoint import build_model, load_model, read_checkpoint
from dk_bench.training.fitting import Diverged
from dk_bench.training.run import evaluate, run_folder, train

__all__ = [
    "Diverged",
    "LitClassifier",
    "build_model",
    "evaluate",
    "load_model",
    "read_checkpoint",
    "run_folder",
    "train",
]
