"""Deformable Kernels (Gao et al., ICLR 2020): operators, modules, models and a benchmark.

Importing the package makes its models known to timm: ``timm.create_model("resnet50dw_dk")``.
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING

from dk_bench.models import KernelSpec, deform

if TYPE_CHECKING:
    from pathlib import Path

    from dk_bench.trained.load import Trained

try:
    __version__ = _metadata.version("dk_bench")
except _metadata.PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"
__all__ = ["KernelSpec", "__version__", "deform", "load"]


def load(path: "str | Path") -> "Trained":
    """Returns a trained model with its transform and the names of its classes, see `dk_bench.trained.load.Trained`.

    ``path`` is a run's folder or its ``last.ckpt``, or what ``dk-bench export`` or timm's ``save_for_hf`` wrote. Raises
    UserError where there is nothing of the kind, it is damaged, or its weights are not finite.
    """
    from dk_bench.trained.load import open_trained  # which imports Lightning, slowly

    return open_trained(path)
