#!/usr/bin/env bash
# Whether dk_bench builds, and the fast part of its tests passes, under another Python, another torch and the newest
# release of everything else, or other packages for detection, in an environment of its own that is removed in the end:
#
#   tools/compat.sh PYTHON TORCH [openmmlab|onedl]
#   tools/compat.sh python3.13 torch==2.15.0          # whatever needs no detection
#   tools/compat.sh python3.11 torch==2.11.0 onedl    # detection on onedl's forks of mmcv, mmengine and mmdet
#
# COMPAT=FOLDER keeps the environment there, and takes it up again. Needs what the operators need to compile, 6 GB of
# disk, and about 10 minutes on one core; the CUDA operators are left out. Ends with a table of the tests, by folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?a Python, for example python3.12} torch=${2:?a torch, for example torch==2.15.0} set=${3:-none}

# Without a set: what touches Python's and torch's interfaces, less training runs, browsers and commands in processes of
# their own. With one: building, training and weights of detectors, without mmdet's own tools.
tests=(tests/{reading,nn,runs,data,functional} tests/models/test_{small,deform,rules,timm_contract,export,cost}.py
  tests/training/test_{recipe,training_models}.py)
detection=(tests/detection/test_{requirements,backbone,data,deform_roi_extractor,metrics,weights_mmdet}.py
  tests/detection/test_detection_training.py)
case $set in
  none) mmcv='' ;;
  openmmlab) tests=("${detection[@]}") mmcv=mmcv==2.1.0 mm=(mmengine 'mmdet>=3.3,<3.4') ;;
  onedl) tests=("${detection[@]}") mmcv=onedl-mmcv==2.3.6 mm=(onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1) ;;
  *) echo "compat.sh: the third word is openmmlab or onedl, not $set" >&2 && exit 2 ;;
esac

if [ -n "${COMPAT:-}" ]; then
  mkdir -p "$COMPAT"
  place=$(cd "$COMPAT" && pwd)
else
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
fi
bin=$place/venv/bin
pip() { "$bin/python" -m pip "$1" --quiet --no-compile "${@:2}"; }

# The sources without what was built here for another Python.
mkdir -p "$place/source"
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$place/source"
[ -x "$bin/python" ] || "$python" -m venv "$place/venv"
echo "Installing $torch ..."
pip install --upgrade pip
pip install "$torch" torchvision 'setuptools>=77,<82' wheel ninja
if [ -n "$mmcv" ]; then
  "$bin/python" "$place/source/tools/mmcv_wheel.py" "$place/wheels" "$mmcv"
  pip install --find-links "$place/wheels" "$mmcv" "${mm[@]}" faster-coco-eval pycocotools
fi
echo "Compiling the operators, installing dk_bench ..."
DK_BENCH_CUDA=0 pip install "$torch" --editable "$place/source[dev,onnx]"

cd "$place/source"
status=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} WANDB_MODE=offline
"$bin/python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors --durations=25 \
  --junitxml="$place/tests.xml" "${tests[@]}" >"$place/tests.log" 2>&1 || status=$?
sed -n '/short test summary/,$p' "$place/tests.log"
"$bin/python" - "$place/tests.xml" <<'PROGRAM'
import platform
import sys
from collections import Counter
from importlib.metadata import distributions, version
from xml.etree import ElementTree

told = {"torch", "torchvision", "timm", "numpy", "pytorch-lightning", "mmcv", "mmengine", "mmdet"}
names = {name for found in distributions() if (name := found.metadata["Name"]) in told or name.startswith("onedl")}
versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in sorted(names))]
print("", ", ".join(versions), "", sep="\n")
rooms: dict[str, Counter] = {}
for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    verdict = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
    # A file that cannot be imported is a case of its name alone.
    rooms.setdefault((case.get("classname") or case.get("name") or "tests.?").split(".")[1], Counter())[verdict] += 1
print("| tests | passed | skipped | failed |\n| :-- | --: | --: | --: |")
for room, counts in rooms.items():
    print(f"| {room} | {counts['passed']} | {counts['skipped']} | {counts['failure'] + counts['error']} |")
PROGRAM
exit "$status"
