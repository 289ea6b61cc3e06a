"""The operators in the Kernel Hub's layout: laid out, checked and loaded by Hugging Face's own package."""

import json
import subprocess
import sys
from pathlib import Path

import hub_kernel
import pytest
from new_python import run_new_python

import dk_bench
from dk_bench import functional

PACKAGE = Path(dk_bench.__file__).parent
# With the libraries built here, which register in the namespace dk_bench: so the kernel takes the package's own place.
PROGRAM = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel

dk = get_local_kernel(Path("kernel"), backend="cpu")
assert Path(dk.__file__).is_relative_to(Path("kernel").resolve()), dk.__file__
assert sys.modules["dk_bench.functional"].__file__.startswith(str(Path("kernel").resolve()))
assert not {"dk_bench.nn", "dk_bench.models"} & sys.modules.keys()
torch.manual_seed(0)
images, weight = torch.randn(2, 5, 9, 7, requires_grad=True), torch.randn(5, 1, 3, 3, requires_grad=True)
offset = torch.zeros(2, 18, 9, 7, requires_grad=True)
given = dk.local_deform_kernel(images, offset, weight, kernel_size=3, padding=1)
expected = torch.nn.functional.conv2d(images, weight, padding=1, groups=5)
torch.testing.assert_close(given, expected)
found = [torch.autograd.grad(output.square().sum(), (images, weight)) for output in (given, expected)]
torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
print(*dk.__all__)
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A folder that holds the kernel's builds for this machine: with the libraries that are built here."""
    pytest.importorskip("kernels")
    folder = tmp_path_factory.mktemp("hub")
    libraries = folder / "libraries"
    libraries.mkdir()
    (libraries / "_cpu.so").symlink_to(next(PACKAGE.glob("_cpu*.so")))
    return hub_kernel.lay_out(libraries, "dk_bench", folder / "kernel" / "build")


def test_kernels_loads_it_and_it_computes(kernel):
    done = run_new_python(["-c", PROGRAM], cwd=kernel.parents[2], env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    assert (done.returncode, done.stdout.split()) == (0, functional.__all__), done.stderr


def test_kernels_reads_what_it_says_of_itself(kernel):
    from kernels._rust import Digest, DigestAlgorithm, Metadata
    from kernels.variants import parse_variant

    metadata = Metadata.read_from_file(kernel / "metadata.json")
    assert (metadata.id, str(metadata.name), metadata.version) == ("dk_bench", "dk-bench", 0)
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, kernel))
    assert parse_variant(kernel.name).variant_str == kernel.name
    assert "/dense.py" not in json.dumps(metadata.digest.files)
    command = [sys.executable, "-c", "from kernels.cli import main; main()", "info", str(kernel.parents[1])]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"Name: dk-bench", "License: MIT", "Backends: cpu"} <= set(told.stdout.splitlines())


def test_a_name_of_its_own_is_in_all_its_files(kernel, tmp_path):
    """So that it can live in one process with the package, which has other names for everything."""
    libraries = kernel.parents[2] / "libraries"
    build = hub_kernel.lay_out(libraries, "_dk_bench_cpu_0", tmp_path)
    texts = {path.relative_to(build): path.read_text("utf-8") for path in build.rglob("*.py")}
    assert Path("functional/loading.py") in texts and Path("reference/checks.py") in texts
    assert [str(path) for path, text in texts.items() if "import dk_bench" in text or " dk_bench." in text] == []
    assert "torch.ops._dk_bench_cpu_0.deform_kernel_conv" in texts[Path("functional/deform_kernel_conv.py")]
    again = hub_kernel.lay_out(libraries, "_dk_bench_cpu_1", tmp_path)  # takes the place of the first
    assert again == build and list(tmp_path.iterdir()) == [build]
    assert json.loads((build / "metadata.json").read_text())["id"] == "_dk_bench_cpu_1"
