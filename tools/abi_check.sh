#!/usr/bin/env bash
# Whether the CPU library that is built here loads and computes under another Python or another torch, in an environment
# of its own: tools/abi_check.sh PYTHON TORCH, for example tools/abi_check.sh python3.12 torch==2.14.0
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?a Python, for example python3.12} torch=${2:?a torch, for example torch==2.14.0}
library=$(ls dk_bench/_cpu*.so)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --no-compile --upgrade pip
"$place/venv/bin/pip" install --quiet --no-compile "$torch" numpy
cp "$library" "$place/library.so"
cd "$place"
"$place/venv/bin/python" - <<'PROGRAM'
import sys

import torch

torch.ops.load_library("library.so")
op = torch.ops.dk_bench
torch.manual_seed(0)
x, weight = torch.randn(2, 70, 9, 8), torch.randn(70, 1, 3, 3)
geometry = ([3, 3], [1, 1], [1, 1], [1, 1], True)
expected = torch.nn.functional.conv2d(x, weight, padding=1, groups=70)
torch.testing.assert_close(op.deform_kernel_conv(x, None, None, weight, *geometry), expected)
offset = torch.zeros(2, 18, 9, 8)
torch.testing.assert_close(op.deform_kernel_conv(x, offset, offset, weight, *geometry), expected)
leaves = [t.clone().requires_grad_() for t in (x, weight)]
grad = torch.randn_like(expected)
wanted = torch.autograd.grad(torch.nn.functional.conv2d(leaves[0], leaves[1], padding=1, groups=70), leaves, grad)
given = op.deform_kernel_conv_backward(grad, x, None, offset, weight, *geometry, False)
torch.testing.assert_close(given[0], wanted[0])
torch.testing.assert_close(given[3], wanted[1], rtol=1e-4, atol=1e-4)
try:
    op.deform_kernel_conv(x, None, None, weight[:3], *geometry)
except RuntimeError as error:
    assert "weight: expected" in str(error)
else:
    raise AssertionError("a bad weight was taken")
print(f"loads and computes under Python {sys.version.split()[0]}, torch {torch.__version__}")
PROGRAM
