#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with torch, timm, pytest and nvcc, in under 8 minutes: builds the
# operators, runs the tests marked cuda and, beside them, compute-sanitizer on a small set, then both benchmarks. Leaves
# build.log, tests.xml, tests.log, sanitizer.log, bench.log, ops.json, train.json and summary.json in $OUT
# (gpu_check_out by default). A part that fails spoils no other; the exit status is that of the worst. PARTS="build tests"
# runs some alone.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_check_out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
parts=" ${PARTS:-build tests memcheck racecheck initcheck synccheck bench train} "

part() { # NAME LIMIT LOG COMMAND...: runs it within LIMIT seconds, and adds what it prints to LOG
  local name=$1 limit=$2 log=$out/$3 begin=$SECONDS
  shift 3
  [[ $parts == *" $name "* ]] || return 0
  # Interrupted rather than killed, so that pytest writes what it has; background jobs would ignore that by default.
  timeout -s INT -k 10 "$limit" env --default-signal=INT "$@" >"$work/$name.log" 2>&1
  echo "$? $((SECONDS - begin))" >"$work/$name.result"
  { echo "== $name: status and seconds $(cat "$work/$name.result")" && cat "$work/$name.log"; } >>"$log"
  echo "== $name" && tail -n 5 "$work/$name.log"
}

rm -f "$out"/{build,tests,sanitizer,bench}.log "$out"/{ops,train,summary}.json "$out"/tests.xml
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} DK_BENCH_CUDA=1 MAX_JOBS=${MAX_JOBS:-12}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
part build 130 build.log "$python" -c "
import setuptools, runpy, sys
sys.argv = ['setup.py', 'build_ext', '--inplace']
runpy.run_path('setup.py')"

processes=()
"$python" -c 'import xdist' 2>/dev/null && processes=(-n "${PROCESSES:-5}")
part tests 170 tests.log "$python" -m pytest -q -m cuda -p no:cacheprovider "${processes[@]}" --durations=10 \
  --junitxml="$out/tests.xml" tests/test_cuda.py tests/test_deform_roi_pool_cuda.py &
# Every tensor gets memory of its own, so that reading past its end is seen. What torch tries of the driver as it starts,
# and does without, is no error.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
for tool in memcheck racecheck initcheck synccheck; do
  options=(--tool "$tool" --error-exitcode 9)
  [ "$tool" = memcheck ] && options+=(--report-api-errors no)
  part "$tool" 170 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer:-compute-sanitizer}" \
    "${options[@]}" "$python" tools/gpu_small.py &
done
wait
# The setting that the targets are for comes first, and stands if time runs out before the others.
part bench 100 bench.log "$python" -c "
import json, torch
from dk_bench.analysis.bench import BATCH, RESNET50DW, SETTINGS, Shape, bench_operators
from dk_bench.analysis.bench_words import sentences
shapes = [Shape(*s, BATCH['cuda']) for s in RESNET50DW]
for settings in (SETTINGS['cuda'][:1], SETTINGS['cuda']):
    record = bench_operators(shapes, settings, torch.device('cuda'), 11, lambda what: print(what, flush=True))
    with open('$out/ops.json', 'w') as file:
        json.dump(record, file, indent=1)
    print('\n'.join(sentences(record, 'conclusions')))"
part train 60 bench.log "$python" -c "
import json, torch
from dk_bench.analysis.bench_train import ModelSet, bench_models
models = ModelSet(('resnet50dw', 'resnet50dw_dk'), 128, 224)
record = bench_models([models], torch.device('cuda'), bfloat16=True, rounds=8)
with open('$out/train.json', 'w') as file:
    json.dump(record, file, indent=1)
print(record['parts'][0]['conclusions'])"

{
  echo '{'
  for name in $parts; do
    [ -f "$work/$name.result" ] && read -r code seconds <"$work/$name.result" || continue
    echo "  \"$name\": {\"status\": $code, \"seconds\": $seconds},"
  done
  gpu=$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader 2>/dev/null | head -n 1)
  echo "  \"gpu\": \"${gpu//\"/}\""
  echo '}'
} >"$out/summary.json"
cat "$out/summary.json"
! grep -qv '^0 ' "$work"/*.result
