# dk_bench with its compiled operators, for CPUs or for CUDA:
#
#   docker build --target cpu --tag dk_bench .
#   docker build --target cuda --tag dk_bench:cuda .
#   docker run --rm --volume "$PWD/runs:/bench/runs" dk_bench train configs/demo.yaml
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD:/bench" dk_bench:cuda train FILE    # loaders need /dev/shm
#
# Compilers and CUDA's toolkit stay in the stages that build. Without mmdet: mmcv has to be compiled against torch, see
# the Makefile.
ARG PYTHON=3.11
# torch's own, as constraints.txt has it: 13.0, and the toolkit's release.
ARG CUDA=13.0
ARG CUDA_RELEASE=2

FROM python:${PYTHON}-slim-bookworm AS torch
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt /opt/
# Before our sources, so that a change of these fetches nothing again. This torch serves CPUs too.
RUN python -m venv /opt/venv && pip install --constraint /opt/constraints.txt torch torchvision

FROM torch AS compiler
# Whatever version Debian's release has. git: the version of the package is that of its tags.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .

FROM compiler AS build-cpu
RUN DK_BENCH_CUDA=0 pip wheel --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:${CUDA}.${CUDA_RELEASE}-devel-ubuntu22.04 AS toolkit

FROM compiler AS build-cuda
ARG CUDA
COPY --from=toolkit /usr/local/cuda-${CUDA} /usr/local/cuda
# Another list is for other GPUs; PTX serves later ones.
ARG ARCHITECTURES="8.0;9.0+PTX"
RUN CUDA_HOME=/usr/local/cuda DK_BENCH_CUDA=1 TORCH_CUDA_ARCH_LIST="${ARCHITECTURES}" \
    pip wheel --no-deps --wheel-dir /wheels .

FROM torch AS runtime
# Files in a mounted folder are user 1000's, not root's: --user "$(id -u):$(id -g)" makes them yours if you are another.
RUN useradd --create-home --uid 1000 user && install --directory --owner user /bench
ENV WANDB_MODE=offline MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /bench
ENTRYPOINT ["dk-bench"]
CMD ["--help"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=build-cuda,source=/wheels,target=/wheels \
    pip install --constraint /opt/constraints.txt "$(echo /wheels/dk_bench-*.whl)[loggers,onnx,wds]"
USER 1000

FROM runtime AS cpu
RUN --mount=type=bind,from=build-cpu,source=/wheels,target=/wheels \
    pip install --constraint /opt/constraints.txt "$(echo /wheels/dk_bench-*.whl)[loggers,onnx,wds]"
USER 1000
