#!/usr/bin/env bash
# Whether the wheel in dist/ serves a user: installed into a new environment from wheels alone, with no compiler on PATH,
# under a given Python and torch. Every operator computes there, forward and backward, as the reference does; ten steps
# are trained; nothing of mmdet is asked for.
#   tools/wheel_check.sh PYTHON TORCH [WHEEL], for example tools/wheel_check.sh python3.11 torch==2.11.0
# VENV=FOLDER makes the environment there, or uses the one that is there, and leaves it. Takes 5 GB, and minutes of pip.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:?a Python, for example python3.12}") torch=${2:?a torch, for example torch==2.11.0}
wheel=$(realpath "${3:-$(ls dist/dk_bench-*.whl)}")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
venv=${VENV:-$place/venv}
[ -d "$venv" ] || "$python" -m venv "$venv"
venv=$(realpath "$venv")
mkdir "$place/bin"
for tool in cat dirname env git ls rm sh uname; do ln -s "$(command -v "$tool")" "$place/bin/$tool"; done
cd "$place"
unset PYTHONPATH CC CXX CUDA_HOME
export PATH="$venv/bin:$place/bin"
for tool in gcc g++ cc c++ clang clang++ nvcc ninja cmake make; do
  if found=$(command -v "$tool"); then echo "$tool is on PATH: $found" >&2 && exit 1; fi
done
echo "== no compiler on PATH: $PATH"
pip install --quiet --no-compile --only-binary :all: "$torch" "$wheel"
pip check
dk-bench --version
python -I - <<'PROGRAM'
import sys

import torch

import dk_bench
from dk_bench import functional, reference
from dk_bench.functional.loading import CHOSEN, HAS_CUDA, SCHEMAS

assert "site-packages" in dk_bench.__file__, dk_bench.__file__
assert CHOSEN == "compiled"
assert HAS_CUDA == (torch.version.cuda is not None), torch.version.cuda
for schema in SCHEMAS:
    name = f"dk_bench::{schema.partition('(')[0]}"
    for key in ["CPU", *(["CUDA"] if HAS_CUDA and "narrow" not in name else [])]:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), (name, key)

torch.manual_seed(0)
data, rois = torch.randn(2, 8, 9, 7), torch.tensor([[0, 0, 0, 6, 6], [1, 1, 2, 5, 8.0]])
kernel, offset = torch.randn(8, 1, 4, 4), torch.randn(2, 18, 9, 7)
dense, per_image, few = torch.randn(6, 4, 4, 4), torch.randn(2, 8, 3, 3), torch.randn(18, 16, 1, 1, requires_grad=True)
many = torch.randn(2, 16, 9, 7).to(memory_format=torch.channels_last)
op = torch.ops.dk_bench
CALLS = {
    "deform_kernel_conv": (
        lambda *t: functional.deform_kernel_conv(*t, kernel_size=3, padding=1),
        lambda *t: reference.deform_kernel_conv(*t, kernel_size=(3, 3), padding=(1, 1)),
        (data, offset, offset.flip(0), kernel),
    ),
    "local_deform_kernel": (
        lambda *t: functional.local_deform_kernel(*t, kernel_size=3, padding=1),
        lambda *t: reference.local_deform_kernel(*t, kernel_size=(3, 3), padding=(1, 1)),
        (data, offset, kernel),
    ),
    "sample_kernel": (
        lambda *t: functional.sample_kernel(*t, kernel_size=3),
        lambda *t: reference.sample_kernel(*t, kernel_size=(3, 3)),
        (kernel, offset[:, :, 0, 0]),
    ),
    "deform_roi_pool": (
        lambda x: functional.deform_roi_pool(x, rois, output_size=3),
        lambda x: reference.deform_roi_pool(x, rois, None, None, output_size=(3, 3)),
        (data,),
    ),
    "depthwise_conv_per_image": (
        lambda *t: op.depthwise_conv_per_image(*t, [1, 1], [1, 1], [1, 1]),
        lambda *t: reference.depthwise_conv_per_image(*t, stride=(1, 1), padding=(1, 1), dilation=(1, 1)),
        (data, per_image),
    ),
    "dense_deform_kernel": (
        lambda *t: functional.dense_deform_kernel(*t, kernel_size=3, padding=1),
        lambda *t: reference.dense_deform_kernel(*t, kernel_size=(3, 3), padding=(1, 1)),
        (data, offset, dense),
    ),
    "scope_unfold": (
        lambda *t: functional.scope_unfold(*t, kernel_size=3, scope=4, padding=1),
        lambda *t: reference.scope_unfold(*t, kernel_size=(3, 3), scope=(4, 4), padding=(1, 1)),
        (data, offset),
    ),
}
for name, (compiled, specified, operands) in CALLS.items():
    found = []
    for function in (compiled, specified):
        leaves = [t.clone().requires_grad_() for t in operands]
        output = function(*leaves)
        output.square().sum().backward()
        found.append([output, *(t.grad for t in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    graph = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(graph(*operands), found[0][0].detach())
    print(f"{name}: as the reference, forward, backward and as a graph")
expected, settings = torch.nn.functional.conv2d(many, few), ([1, 1], [0, 0], [1, 1])
torch.testing.assert_close(op.narrow_conv(many, few, None, *settings), expected)
(wanted,) = torch.autograd.grad(expected, few, expected.detach())
given = op.narrow_conv_weight_gradient(expected.detach(), many, few, *settings)
torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
print("narrow_conv, narrow_conv_weight_gradient: as torch's convolution")
unwanted = {"mmcv", "mmdet", "mmengine"} & sys.modules.keys()
assert not unwanted, unwanted
PROGRAM
dk-bench sweep demo --dry-run >/dev/null
export WANDB_MODE=disabled
small="data.procedural.train_images=320 data.procedural.val_images=100 optim.epochs=1 optim.warmup_epochs=0"
# shellcheck disable=SC2086  # several words
dk-bench train demo model.name=test_resnetdw_dk $small output=runs
python -I - <<'PROGRAM'
import json
import pathlib

(record,) = pathlib.Path("runs").rglob("record.json")
record = json.loads(record.read_text())
assert record["status"] == "finished", record["error"]
(attempt,) = record["attempts"]
assert attempt["steps"] == 10, attempt
assert record["device"]["operators"] == "compiled" and record["versions"]["dk_bench"], record["versions"]
print("ten steps trained by", {name: record["versions"][name] for name in ("python", "dk_bench", "torch", "torchvision")})
PROGRAM
echo "== ${wheel##*/} serves under $(python -V), $torch"
