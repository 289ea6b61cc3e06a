"""Builds the compiled operators: ``dk_bench/_cpu*.so`` always, ``dk_bench/_cuda*.so`` where there is nvcc.

Sources are found by their names: every ``cpu*.cpp`` and ``cuda*.cu`` of a folder in ops/. The operators use PyTorch's
stable ABI, so one build serves torch 2.11 and later and any Python 3. Everything else about the package stands in
pyproject.toml.

DK_BENCH_CUDA=0 leaves the CUDA operators out, DK_BENCH_CUDA=1 makes it an error if they cannot be built.
DK_BENCH_STRICT=1 makes compilers' warnings errors. DK_BENCH_NAMESPACE=NAME registers the operators as torch.ops.NAME,
for tools/hub_kernel.py. DK_BENCH_OPS=reference compiles nothing: the same variable then makes plain PyTorch compute.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py


def import_torch():
    """The torch of the environment that is being installed into.

    pip builds in an isolated environment without torch. The one torch that counts is not a second copy of several
    gigabytes there but the one already installed: its headers and its CUDA version.
    """
    sys.path += [p for p in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) if p not in sys.path]
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "dk_bench needs torch >= 2.11 installed first (pip install torch==2.11.0); if it is, the installer hides "
            "it: install what pyproject.toml's build-system requires, then add --no-build-isolation "
            f"({error})"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        raise SystemExit(f"dk_bench needs torch >= 2.11, found {torch.__version__}")
    return torch


WINDOWS = sys.platform == "win32"
COMMON = ["/O2" if WINDOWS else "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# The name that sources give torch's namespace is dk_bench; another lets two builds live in one process.
if namespace := os.environ.get("DK_BENCH_NAMESPACE"):
    COMMON.append(f"-Ddk_bench={namespace}")
# Our own builds stop at warnings; a user's compiler may know ones that ours does not.
STRICT = os.environ.get("DK_BENCH_STRICT") == "1"
ARITHMETIC = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
CPU_FLAGS = [
    *COMMON,
    *(["/std:c++17", *(f"/clang:{flag}" for flag in ARITHMETIC)] if WINDOWS else ["-std=c++17", *ARITHMETIC, "-Wall"]),
    *(["-Werror"] if STRICT else []),
]
NVCC_FLAGS = [
    *COMMON,
    "-std=c++17",
    "-DUSE_CUDA",
    "--ptxas-options=-warn-spills",
    *(["-Werror=all-warnings"] if STRICT else []),
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",  # torch's build takes them away
]


def find_toolkit() -> None:
    """Sets CUDA_HOME to the toolkit of the nvcc on PATH, which may be a wrapper outside of it, and has no libraries."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or "CUDA_HOME" in os.environ or "CUDA_PATH" in os.environ:
        return
    plan = subprocess.run([nvcc, "--dryrun", "setup.cu"], capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    if top:
        os.environ["CUDA_HOME"] = os.path.normpath(top[1].strip())


def why_no_cuda(torch, cuda_home: str | None) -> str | None:
    """What keeps the CUDA operators from being built, or None."""
    if os.environ.get("DK_BENCH_CUDA") == "0":
        return "DK_BENCH_CUDA=0"
    if sys.platform != "linux":
        return "they are for Linux"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if cuda_home is None or not os.path.exists(os.path.join(cuda_home, "bin", "nvcc")):
        return "nvcc was not found (set CUDA_HOME)"
    return None


def build_arguments() -> dict:
    """What setuptools needs to compile. Imports torch, which takes seconds, so not for the package's metadata."""
    if os.environ.get("DK_BENCH_OPS") == "reference":
        return {"cmdclass": {"build_py": WithConfigurations}}
    torch = import_torch()
    find_toolkit()
    if WINDOWS:
        os.environ.setdefault("CXX", "clang-cl")  # Microsoft's own compiler has no vectors as the sources use them
    from torch.utils import cpp_extension as torch_build

    headers = glob.glob("ops/*/*.h")
    extensions = [
        torch_build.CppExtension(
            "dk_bench._cpu",
            sorted(glob.glob("ops/*/cpu*.cpp")),
            depends=headers,
            extra_compile_args={"cxx": CPU_FLAGS},
            py_limited_api=True,
        )
    ]
    reason = why_no_cuda(torch, torch_build.CUDA_HOME)
    if reason is None:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")  # the PTX serves later ones
        extensions.append(
            torch_build.CUDAExtension(
                "dk_bench._cuda",
                sorted(glob.glob("ops/*/cuda*.cu")),
                depends=headers,
                extra_compile_args={"cxx": COMMON, "nvcc": NVCC_FLAGS},
                py_limited_api=True,
            )
        )
        print("dk_bench: building the CPU and the CUDA operators", file=sys.stderr)
    elif os.environ.get("DK_BENCH_CUDA") == "1":
        raise SystemExit(f"dk_bench: DK_BENCH_CUDA=1, but the CUDA operators cannot be built: {reason}")
    else:
        print(f"dk_bench: building the CPU operators alone: {reason}", file=sys.stderr)
    return {"ext_modules": extensions, "cmdclass": commands(torch_build)}


class WithConfigurations(build_py):
    """Puts configs/ and sweeps/ into what is installed; dk_bench.reading.shipped finds them there. An editable install
    has them in the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ("configs", "sweeps"):
                place = os.path.join(self.build_lib, "dk_bench", "shipped", folder)
                shutil.copytree(folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def commands(torch_build) -> dict:
    """What the commands of setuptools do otherwise."""

    class Operators(torch_build.BuildExtension):
        """Compiles libraries that know nothing of Python: torch loads them, no import does."""

        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, no_python_abi_suffix=True, **settings)

        def get_export_symbols(self, extension):  # on Windows PyInit_..., which is not there
            return []

    found = {"build_ext": Operators, "build_py": WithConfigurations}
    if "bdist_wheel" in sys.argv:
        from setuptools.command.bdist_wheel import bdist_wheel

        class AnyPython(bdist_wheel):
            """Says of the wheel that it is for one platform and any Python 3."""

            def get_tag(self):
                return "py3", "none", super().get_tag()[2]

        found["bdist_wheel"] = AnyPython
    return found


class OperatorsAlone(Distribution):
    """Compiles in place without reading pyproject.toml, which older setuptools and those without setuptools-scm do not
    understand: ``python setup.py build_ext --inplace`` asks for no more than torch, ninja and a compiler."""

    def parse_config_files(self, filenames=None, ignore_option_errors=False):
        super().parse_config_files([], ignore_option_errors)


metadata_only = {"egg_info", "dist_info", "sdist"} & set(sys.argv)
alone = {"distclass": OperatorsAlone, "packages": ["dk_bench"]} if "build_ext" in sys.argv else {}
setup(**alone, **({} if metadata_only else build_arguments()))
