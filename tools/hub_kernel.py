"""Lays the operators out as a kernel of Hugging Face's Kernel Hub: compiled here, with their derivatives, and no more.

python tools/hub_kernel.py FOLDER [--backend cpu cuda]: makes FOLDER/build/torch-stable-abi211-.../, a build a backend,
for this machine's system. `kernels.get_local_kernel(Path(FOLDER, "build"))` loads it, and `hf upload` puts it on the
Hub. What computes are the package's own files; a build has a name of its own for torch's namespace, so that it lives
beside an installed dk_bench, and beside other builds. Needs a compiler, for cuda nvcc, and the packages torch, kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "dk-bench"
VERSION = 0  # the Hub's number: one more whenever what `__all__` of dk_bench.functional names changes; 0 is for trials
ABI = "211"  # the torch whose stable ABI setup.py compiles for, as the Hub writes it
ROOMS = ("reference", "functional")
LEFT_OUT = ("functional/dense.py",)  # of layers alone
FACE = '''"""The operators of Deformable Kernels (Gao et al., ICLR 2020), with derivatives. Needs torchvision."""

from {identifier}.functional import {names}

__all__ = {listed}
'''
# For versions of `kernels` that look for a folder of the kernel's name.
OLDER = """import importlib.util
import sys
from pathlib import Path

if "{identifier}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{identifier}", Path(__file__).parents[1] / "__init__.py")
    sys.modules["{identifier}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{identifier}"])
from {identifier} import *  # noqa: E402, F403
from {identifier} import __all__  # noqa: E402, F401
"""
CARD = """---
license: mit
tags: [kernels]
---

The operators of Deformable Kernels (Gao, Zhu, Lin, Dai: *Deformable Kernels: Adapting Effective Receptive Fields for
Object Deformation*, ICLR 2020), as dk_bench {version} has them: {names}. They have derivatives of every kind.

```python
from kernels import get_kernel

dk = get_kernel("ORGANISATION/{name}", version={number}, trust_remote_code=True)
output = dk.local_deform_kernel(images, kernel_offset, weight, kernel_size=3, padding=1)
```

One build for torch's stable ABI serves torch 2.11 and later. torchvision has to be installed.
"""


def compile_operators(namespace: str, backend: str, folder: Path) -> Path:
    """Returns the folder with the libraries, compiled so that they register in torch's namespace of that name."""
    commands = {"CFLAGS": "-g0", "LDSHARED": "c++ -shared", "LDCXXSHARED": "c++ -shared"}
    chosen = {"DK_BENCH_NAMESPACE": namespace, "DK_BENCH_CUDA": str(int(backend == "cuda"))}
    places = ["--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", *places],
        cwd=ROOT,
        env={**os.environ, **commands, **chosen},
        check=True,
    )
    libraries = folder / "lib" / "dk_bench"
    if strip := shutil.which("strip"):
        subprocess.run([strip, "--strip-unneeded", *libraries.glob("*.so")], check=True)
    return libraries


def backend_of(libraries: Path) -> dict[str, object]:
    """Returns what metadata say of the hardware: "cuda" where there is a library for it, with its architectures."""
    if not any(libraries.glob("_cuda*")):
        return {"type": "cpu"}
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(" ", ";").split(";")
    return {"type": "cuda", "archs": architectures}


def variant(backend: Mapping[str, object]) -> str:
    """Returns the name of a build for this machine's system, as the Hub has it."""
    import torch

    kind = "cpu" if backend["type"] == "cpu" else f"cu{torch.version.cuda.replace('.', '')}"
    return f"torch-stable-abi{ABI}-{kind}-{platform.machine().lower()}-{platform.system().lower()}"


def lay_out(libraries: Path, identifier: str, folder: Path) -> Path:
    """Writes a build of the kernel below ``folder`` and returns its own folder, which appears whole or not at all.

    ``libraries`` is where ``_cpu.so``, and ``_cuda.so`` where there is one, lie; ``identifier`` is the namespace that
    they register in, and the name under which Python imports the kernel.
    """
    from kernels._rust import Digest, DigestAlgorithm  # what `kernels` checks builds with

    backend = backend_of(libraries)
    place = folder / variant(backend)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        build = Path(temporary, "build")
        for room in ROOMS:
            for path in sorted((ROOT / "dk_bench" / room).glob("*.py")):
                if f"{room}/{path.name}" not in LEFT_OUT:
                    _write(build / room / path.name, re.sub(r"\bdk_bench\b", identifier, path.read_text("utf-8")))
        names = public_names()
        face = {"identifier": identifier, "names": ", ".join(names), "listed": json.dumps(names)}
        _write(build / "__init__.py", FACE.format(**face))
        _write(build / NAME.replace("-", "_") / "__init__.py", OLDER.format(**face))
        for library in libraries.glob("_c*.so"):
            shutil.copy(library, build)
        digest = Digest.hash_variant(DigestAlgorithm.SHA256, build)
        metadata = {
            "name": NAME,
            "id": identifier,
            "version": VERSION,
            "license": "MIT",
            "python-depends": [],
            "backend": backend,
            "digest": {"algorithm": "sha256", "files": digest.files},
        }
        _write(build / "metadata.json", json.dumps(metadata, indent=2) + "\n")
        if place.exists():
            shutil.rmtree(place)
        build.rename(place)
    return place


def public_names() -> list[str]:
    """Returns the functions that the kernel has: those that `dk_bench.functional` names."""
    text = (ROOT / "dk_bench" / "functional" / "__init__.py").read_text("utf-8")
    return re.findall(r'"(\w+)"', text.rpartition("__all__")[2])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", nargs="+", choices=("cpu", "cuda"), default=["cpu"])
    args = parser.parse_args()
    changed = "_dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    commit = _git("rev-parse", "--short=9", "HEAD")
    for backend in args.backend:
        identifier = f"_dk_bench_{backend}_{commit}{changed}"
        with tempfile.TemporaryDirectory() as temporary:
            print(lay_out(compile_operators(identifier, backend, Path(temporary)), identifier, args.folder / "build"))
    card = {"name": NAME, "number": VERSION, "names": ", ".join(f"`{name}`" for name in public_names())}
    _write(args.folder / "README.md", CARD.format(version=commit + changed, **card))


if __name__ == "__main__":
    main()
