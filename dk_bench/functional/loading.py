"""Loads the compiled operators, or has the reference compute in their place.

``_cpu`` must be there, ``_cuda`` is where it was built (it needs nvcc). Where no compiled operator fits a tensor's
device, plain PyTorch computes (see `dk_bench.functional.fallback`). With DK_BENCH_OPS=reference it does so everywhere,
and no library is needed.
"""

import os
import warnings
from pathlib import Path

import torch

from dk_bench.functional.private import check_torch

CHOICE = "DK_BENCH_OPS"  # environment variable
COMPILED, REFERENCE = CHOICES = "compiled", "reference"

# As the CPU library defines them, for where it is left alone.
_CONVOLUTION = (
    "Tensor input, Tensor? data_offset, Tensor? kernel_offset, Tensor weight, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, bool clip"
)
_POOLING = (
    "Tensor input, Tensor rois, Tensor? offset, Tensor? mask, int[] output_size, float spatial_scale, "
    "int sampling_ratio, float gamma, bool aligned, bool position_sensitive"
)
_PER_IMAGE = "Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation"
_UNFOLDING = (
    "Tensor input, Tensor? data_offset, Tensor? kernel_offset, int[] kernel_size, int[] scope, int[] stride, "
    "int[] padding, int[] dilation, bool clip"
)
_NARROW = "Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation"
SCHEMAS = (
    f"deform_kernel_conv({_CONVOLUTION}) -> Tensor",
    f"deform_kernel_conv_backward(Tensor grad, {_CONVOLUTION}, bool deterministic, bool warn_only=False, "
    "bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)",
    f"depthwise_conv_per_image({_PER_IMAGE}) -> Tensor",
    f"depthwise_conv_per_image_backward(Tensor grad, {_PER_IMAGE}, bool deterministic, bool warn_only=False, "
    "bool[2] output_mask=[True, True]) -> (Tensor, Tensor)",
    f"narrow_conv({_NARROW}) -> Tensor",
    f"narrow_conv_weight_gradient(Tensor grad, {_PER_IMAGE}) -> Tensor",
    f"unfold_columns({_UNFOLDING}, int groups, int first, Tensor(a!) columns) -> ()",
    f"unfold_columns_backward(Tensor grad_columns, {_UNFOLDING}, int groups, int first, bool deterministic, "
    "bool warn_only, Tensor(a!)? grad_input, Tensor(b!)? grad_data_offset, Tensor(c!)? grad_kernel_offset) -> ()",
    f"deform_roi_pool({_POOLING}) -> Tensor",
    f"deform_roi_pool_backward(Tensor grad, {_POOLING}, bool deterministic, bool warn_only=False, "
    "bool[3] output_mask=[True, True, True]) -> (Tensor, Tensor, Tensor)",
)
# Operators whose kernels are Python that calls compiled ones: no library defines these.
COMPOSED = (
    f"scope_unfold({_UNFOLDING}) -> Tensor",
    f"scope_unfold_backward(Tensor grad, {_UNFOLDING}, bool deterministic, bool warn_only=False, "
    "bool[3] output_mask=[True, True, True]) -> (Tensor, Tensor, Tensor)",
    f"dense_deform_kernel({_CONVOLUTION}, int memory) -> Tensor",
    f"dense_deform_kernel_backward(Tensor grad, {_CONVOLUTION}, int memory, bool deterministic, bool warn_only=False, "
    "bool[4] output_mask=[True, True, True, True]) -> (Tensor, Tensor, Tensor, Tensor)",
)

_PACKAGE = Path(__file__).resolve().parent.parent


def _read_choice() -> str:
    chosen = os.environ.get(CHOICE, COMPILED)
    if chosen not in CHOICES:
        raise ValueError(f"environment variable {CHOICE} is {chosen!r}, expected {' or '.join(CHOICES)}")
    return chosen


def _load(name: str) -> bool:
    """Loads dk_bench/<name>*.so; False if there is none. Raises OSError if it cannot be loaded."""
    built = sorted(_PACKAGE.glob(f"{name}*.so")) + sorted(_PACKAGE.glob(f"{name}*.pyd"))
    if not built:
        return False
    torch.ops.load_library(str(built[0]))
    return True


def _load_cpu() -> None:
    """Raises ImportError that says what to do: most who have no library have forgotten to build it."""
    names = [schema.partition("(")[0] for schema in SCHEMAS]
    try:
        fault = "" if _load("_cpu") else f"are missing ({_PACKAGE.name}/_cpu*.so)"
    except OSError as error:
        fault = f"cannot be loaded: {error}"
    if not fault and (lacking := [name for name in names if not hasattr(torch.ops.dk_bench, name)]):
        fault = f"are older than this package, without {', '.join(lacking)}"
    if fault:
        raise ImportError(
            f"dk_bench: the compiled operators {fault}; build them with `pip install -e .`, or do without, slowly, by "
            f"{CHOICE}={REFERENCE}"
        )


def _load_cuda() -> str | None:
    """Loads the CUDA operators, or returns why there are none. A library that fails leaves the CPU's alone."""
    if torch.version.cuda is None:  # a torch for the CPU or for ROCm
        return f"this torch ({torch.__version__}) is built without CUDA"
    try:
        return None if _load("_cuda") else "the CUDA operators were not built"
    except OSError as error:
        warnings.warn(f"dk_bench: the CUDA operators were built but cannot be loaded: {error}", stacklevel=2)
        return f"the CUDA operators were built but cannot be loaded: {error}"


check_torch()
#: "compiled" or "reference".
CHOSEN = _read_choice()
#: What this package registers in torch lives as long as this.
library = torch.library.Library("dk_bench", "FRAGMENT")

if CHOSEN == COMPILED:
    _load_cpu()
    _NO_CUDA = _load_cuda()
else:
    _NO_CUDA = f"{CHOICE}={REFERENCE}"
for _schema in COMPOSED if CHOSEN == COMPILED else SCHEMAS + COMPOSED:
    library.define(_schema)

#: Whether there are CUDA operators.
HAS_CUDA = _NO_CUDA is None


def why_reference(device: str) -> str | None:
    """Tells why the reference computes on a type of device ("cpu", "mps"); None where compiled operators do."""
    if CHOSEN == REFERENCE:
        return f"{CHOICE}={REFERENCE}"
    if device == "cuda":
        return _NO_CUDA
    return None if device == "cpu" else "there are compiled operators for the CPU and CUDA alone"


def operators_on(device: str) -> str:
    """Tells what computes on devices of a type: "compiled" or "reference"."""
    return COMPILED if why_reference(device) is None else REFERENCE


def describe_operators() -> str:
    """Returns all there are, in words."""
    if CHOSEN == REFERENCE:
        return f"the reference in plain PyTorch ({CHOICE}={REFERENCE})"
    return f"CPU ({torch.ops.dk_bench.cpu_variant()})" + (", CUDA" if HAS_CUDA else f"; {_NO_CUDA}")
