#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with torch, timm, pytest and nvcc: builds the operators, runs the tests
# marked cuda, compute-sanitizer on a small set, and the operator benchmark. Leaves build.log, tests.xml, tests.log,
# sanitizer.log, ops.json and summary.json in $OUT (gpu_check_out by default). A part that fails spoils no other; the exit
# status is that of the worst.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_check_out}
mkdir -p "$out"
python=${PYTHON:-python3}
status=0
declare -A results seconds

part() { # NAME LIMIT COMMAND...: runs it within LIMIT seconds, its output in NAME.log
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  results[$name]=$?
  seconds[$name]=$((SECONDS - begin))
  [ "${results[$name]}" -eq 0 ] || status=1
  tail -n 5 "$out/$name.log"
}

export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} DK_BENCH_CUDA=1 MAX_JOBS=${MAX_JOBS:-8} PYTHONPATH=$PWD
part build 100 "$python" -c "
import setuptools, runpy, sys
sys.argv = ['setup.py', 'build_ext', '--inplace']
runpy.run_path('setup.py')"
part tests 140 "$python" -m pytest -q -m cuda -p no:cacheprovider --junitxml="$out/tests.xml" \
  tests/test_cuda.py tests/test_deform_roi_pool_cuda.py
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
small='import torch, dataclasses
import sys; sys.path.insert(0, "tests")
from operator_cases import random_case, make_tensors, forward_backward
from dk_bench import functional
for seed in range(0, 24):
    case = random_case(seed)
    operands, grad = make_tensors(case)
    there = [None if t is None else t.detach().cuda().requires_grad_() for t in operands]
    torch.use_deterministic_algorithms(seed % 3 == 0 and case.dtype != torch.float64)
    forward_backward(functional.deform_kernel_conv, there, grad.cuda(), case.geometry)
torch.cuda.synchronize()'
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck; do
    part "$tool" 40 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -c "$small"
  done
fi
part bench 110 "$python" -c "
import json, os, torch
from dk_bench.analysis.bench import BATCH, RESNET50DW, SETTINGS, Shape, bench_operators
shapes = [Shape(*s, BATCH['cuda']) for s in RESNET50DW]
record = bench_operators(shapes, SETTINGS['cuda'], torch.device('cuda'), 11, lambda what: print(what, flush=True))
json.dump(record, open('$out/ops.json', 'w'), indent=1)
print('\n'.join(record['conclusions']))"

{
  echo '{'
  for name in "${!results[@]}"; do
    echo "  \"$name\": {\"status\": ${results[$name]}, \"seconds\": ${seconds[$name]}},"
  done
  echo "  \"gpu\": \"$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader 2>/dev/null | head -n 1)\""
  echo '}'
} >"$out/summary.json"
cat "$out/summary.json"
exit $status
