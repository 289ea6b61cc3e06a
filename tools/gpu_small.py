"""Runs the CUDA operators on a few small cases of every kind, for compute-sanitizer (tools/gpu_check.sh)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "cases"))

import operator_cases
import per_image_cases
import roi_cases
import unfold_cases

from dk_bench import functional

DEVICE = sys.argv[1] if sys.argv[1:] else "cuda"


def run_deform_kernel_conv(seed: int) -> None:
    case = operator_cases.random_case(seed)
    if seed % 5 == 0:  # scopes of one, several and very many steps of the inner dimension
        case = replace(case, scope=((2, 2), (4, 4), (20, 12), (40, 40))[seed // 5 % 4])
    operands, grad = operator_cases.make_tensors(case, DEVICE)
    plain = case.dtype == torch.float64 or case.scope == (40, 40)  # which has no deterministic way
    torch.use_deterministic_algorithms(seed % 3 == 0 and not plain)
    operator_cases.forward_backward(functional.deform_kernel_conv, operands, grad, case.geometry)


def run_deform_roi_pool(seed: int) -> None:
    torch.use_deterministic_algorithms(False)
    case = roi_cases.random_case(seed)
    operands, grad = roi_cases.make_tensors(case, DEVICE)
    roi_cases.forward_backward(functional.deform_roi_pool, operands, grad, case.settings)


def run_depthwise_conv_per_image(seed: int) -> None:
    torch.use_deterministic_algorithms(seed % 2 == 0)
    layout = ("channels_last", "contiguous")[seed % 3 % 2]
    dtype, channels = operator_cases.DTYPES[seed % 4], (16, 40, 5)[seed // 4 % 3]
    given = [t.to(DEVICE).requires_grad_() for t in per_image_cases.operands(dtype, layout, channels, (3, 5))]
    output = torch.ops.dk_bench.depthwise_conv_per_image(*given, *per_image_cases.GEOMETRY.values())
    torch.autograd.grad(output, given, torch.ones_like(output))


def run_unfold_columns(seed: int) -> None:
    call = unfold_cases.Call(seed, device=DEVICE)
    call.gradients(call.columns())


if __name__ == "__main__":
    torch.utils.deterministic.fill_uninitialized_memory = False  # or initcheck would not see what is never written
    for seed in range(32):
        run_deform_kernel_conv(seed)
        run_deform_roi_pool(seed)
        run_depthwise_conv_per_image(seed)
        run_unfold_columns(seed)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
