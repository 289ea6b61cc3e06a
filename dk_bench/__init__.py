"""Deformable Kernels (Gao et al., ICLR 2020): operators, modules, models and a benchmark.

Importing the package makes its models known to timm: ``timm.create_model("resnet50dw_dk")``.
"""

from dk_bench.models import KernelSpec, deform

__version__ = "0.1.0"
__all__ = ["KernelSpec", "__version__", "deform"]
