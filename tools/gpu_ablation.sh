#!/usr/bin/env bash
# The experiments of docs/experiments.md on a machine with a GPU, no network and none of our packages: the runs that
# `tools/gpu_ablation.py pack FOLDER SWEEP...` laid out, side by side, for SECONDS_GIVEN (580) seconds. Leaves records,
# logs and weights in $OUT (gpu_ablation_out by default); again on the same machine, it goes on where it stopped, and
# GOES_ON=1 says beforehand that this will happen. To be called in the clone that pack made, with the folder around it:
# `cd FOLDER/code && tools/gpu_ablation.sh ..`. The operators are built unless they load already.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_ablation_out}
folder=${1:-.gpu}
python=${PYTHON:-python3}
begin=$SECONDS
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
if ! "$python" -c "
import sys
from dk_bench.functional.loading import why_reference
sys.exit(why_reference('cuda'))"; then
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} DK_BENCH_CUDA=1 MAX_JOBS=${MAX_JOBS:-12} "$python" -c "
import setuptools, runpy, sys
sys.argv = ['setup.py', 'build_ext', '--inplace']
runpy.run_path('setup.py')" >build.log 2>&1
fi
# Augmented epochs take 138 MB each: in memory, where there is room for those of all seeds.
cache=runs/decoded
[ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 50000000 ] 2>/dev/null && cache=/dev/shm/dk_bench_decoded
"$python" tools/gpu_ablation.py run "$folder" --seconds $((${SECONDS_GIVEN:-580} - SECONDS + begin)) --output "$out" \
  --workers "${WORKERS:-16}" ${WEIGHTS:+--weights $WEIGHTS} ${GOES_ON:+--goes-on} --override data.cache=$cache \
  --override trainer.devices=1
