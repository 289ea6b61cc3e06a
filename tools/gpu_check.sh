#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with torch, timm, pytest and nvcc, in under 8 minutes: builds the
# operators, runs the tests marked cuda in a process for each dtype, then both benchmarks with nothing beside them, then
# compute-sanitizer on a small set. Leaves build.log, tests.log, tests-*.xml, bench.log, sanitizer.log, ops.json,
# dense.json, pointwise.json, train.json and summary.json in $OUT (gpu_check_out by default). A part that fails spoils no
# other; the exit status is that of the worst. PARTS="build tests" runs some alone.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_check_out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
parts=" ${PARTS:-build tests bench train memcheck racecheck initcheck synccheck} "
# Seconds at most; to each comes KILL, what it may take to end. The sanitizers get what is left of 480, at least 85.
BUILD=80 TESTS=110 BENCH=110 TRAIN=40 ALL=475 KILL=10

part() { # NAME LIMIT LOG COMMAND...: runs it within LIMIT seconds, and adds what it prints to LOG
  local name=$1 limit=$2 log=$out/$3 begin=$SECONDS
  shift 3
  [[ $parts == *" $name "* || $parts == *" ${name%%-*} "* ]] || return 0
  # Interrupted rather than killed, so that pytest writes what it has; background jobs would ignore that by default.
  timeout -s INT -k "$KILL" "$limit" env --default-signal=INT "$@" >"$work/$name.log" 2>&1
  echo "$? $((SECONDS - begin))" >"$work/$name.result"
  { echo "== $name: status and seconds $(cat "$work/$name.result")" && cat "$work/$name.log"; } >>"$log"
  echo "== $name" && tail -n 5 "$work/$name.log"
}

rm -f "$out"/{build,tests,sanitizer,bench}.log "$out"/{ops,dense,pointwise,train,summary}.json "$out"/tests*.xml
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} DK_BENCH_CUDA=1 MAX_JOBS=${MAX_JOBS:-12}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Checks that they load, too: without them the reference would run, and pass.
part build "$BUILD" build.log "$python" -c "
import setuptools, runpy, sys
sys.argv = ['setup.py', 'build_ext', '--inplace']
runpy.run_path('setup.py')
from dk_bench.functional.loading import why_reference
sys.exit(why_reference('cuda'))"

# Where pytest-xdist is, a test that crashes takes no other along.
apart=$("$python" -c 'import xdist' 2>/dev/null && echo '-n 1')
for kind in float64 float32 bfloat16 float16 other; do
  chosen="test_random_cases[ and -torch.$kind]"
  [ "$kind" = other ] && chosen='not test_random_cases['
  # shellcheck disable=SC2086  # two words, or none
  part "tests-$kind" "$TESTS" tests.log "$python" -m pytest -q -m cuda -k "$chosen" -p no:cacheprovider --durations=10 \
    $apart --junitxml="$out/tests-$kind.xml" tests/ops/test_cuda.py tests/ops/test_deform_roi_pool_cuda.py \
    tests/ops/test_depthwise_per_image_cuda.py tests/ops/test_unfold_columns_cuda.py &
done
wait

# The setting that the targets are for comes first, and stands if time runs out before the others.
part bench "$BENCH" bench.log "$python" -c "
import json, torch
from dk_bench.analysis.bench.operator_sets import OPERATOR_SETS
from dk_bench.analysis.bench.study import bench_operators
from dk_bench.analysis.bench.timings import sentences
for of, count, rounds in ('depthwise', 1, 11), ('dense', 1, 5), ('pointwise', 1, 5), ('depthwise', None, 5):
    chosen, device = OPERATOR_SETS[of], torch.device('cuda')
    shapes, settings = chosen.shapes_on('cuda'), chosen.settings['cuda'][:count]
    record = bench_operators(shapes, settings, device, rounds, lambda what: print(what, flush=True), of)
    name = 'ops' if of == 'depthwise' else of
    with open(f'$out/{name}.json', 'w') as file:
        json.dump(record, file, indent=1)
    print('\n'.join(sentences(record, 'conclusions')))"
part train "$TRAIN" bench.log "$python" -c "
import json, torch
from dk_bench.analysis.bench.steps import ModelSet, bench_models
models = ModelSet(('resnet50dw', 'resnet50dw_dk'), 128, 224)
record = bench_models([models], torch.device('cuda'), bfloat16=True, rounds=8)
with open('$out/train.json', 'w') as file:
    json.dump(record, file, indent=1)
print(record['parts'][0]['conclusions'])"

# Every tensor gets memory of its own, so that reading past its end is seen. What torch tries of the driver as it starts,
# and does without, is no error.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
left=$((SECONDS < ALL - KILL ? ALL - KILL - SECONDS : 1))  # to timeout, 0 is for ever
for tool in memcheck racecheck initcheck synccheck; do
  options=(--tool "$tool" --error-exitcode 9)
  [ "$tool" = memcheck ] && options+=(--report-api-errors no)
  part "$tool" "$left" sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer:-compute-sanitizer}" \
    "${options[@]}" "$python" tools/gpu_small.py &
done
wait

{
  echo '{'
  for result in "$work"/*.result; do
    read -r code seconds <"$result" || continue
    name=$(basename "$result" .result)
    echo "  \"$name\": {\"status\": $code, \"seconds\": $seconds},"
  done
  gpu=$(nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader 2>/dev/null | head -n 1)
  echo "  \"gpu\": \"${gpu//\"/}\""
  echo '}'
} >"$out/summary.json"
cat "$out/summary.json"
! grep -qv '^0 ' "$work"/*.result
