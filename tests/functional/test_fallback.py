"""Where no compiled operator fits, the reference computes: on other devices, and everywhere if that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dk_bench import functional
from dk_bench.functional import fallback, loading
from dk_bench.runs.hardware import collect_device

TESTS = Path(__file__).parents[1] / "cases"
MODELS = [f"../{name}" for name in ("models/test_models.py", "nn/test_nn.py", "functional/test_bad_input.py")]
ELSEWHERE = """
import warnings, torch, dense_cases, operator_cases as cases
from elsewhere import Moved, held, to_elsewhere
from dk_bench import functional
from dk_bench.functional.dense import deform_conv2d

def there(function):
    return lambda *operands, **settings: Moved.apply(
        function(*(t if t is None else Moved.apply(t) for t in operands), **settings)
    )

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for seed in range(16):
        cases.check_against_reference(cases.random_case(seed), there(functional.deform_kernel_conv))
        dense_cases.check_dense(dense_cases.random_dense_case(seed), via=there(dense_cases.dense))
        dense_cases.check_unfold(dense_cases.random_dense_case(seed), via=there(dense_cases.unfold))
print(*(w.message for w in told), sep="\\n")

x, offset, weight = torch.randn(2, 5, 6, 7), torch.randn(2, 18, 6, 7), torch.randn(5, 1, 4, 4)
given, settings = [to_elsewhere(t) for t in (x, offset, weight)], dict(kernel_size=3, padding=1)
with torch.autocast("elsewhere", torch.bfloat16):
    out = functional.local_deform_kernel(*given, **settings)
with torch.autocast("cpu", torch.bfloat16):
    torch.testing.assert_close(held(out), functional.local_deform_kernel(x, offset, weight, **settings))

dense = torch.randn(4, 5, 3, 3)
out = deform_conv2d(given[0], given[1], to_elsewhere(dense), None, (1, 1), (1, 1), (1, 1), None)
torch.testing.assert_close(held(out), deform_conv2d(x, offset, dense, None, (1, 1), (1, 1), (1, 1), None))
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )


def test_device_without_compiled_operators():
    """Forward, all gradients and autocast, with one warning; torchvision's operator has none there either."""
    done = run("-c", ELSEWHERE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == (
        "dk_bench: on elsewhere the operators are the reference in plain PyTorch, slow and large, as there are "
        "compiled operators for the CPU and CUDA alone; the CPU has them. DK_BENCH_OPS=reference asks for the "
        "reference, without this warning"
    )


def test_models_by_the_reference():
    """Tests of models and layers, but of compiling graphs, with neither library. Bad input gives the same errors."""
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "error:dk_bench",
        "-k",
        "not compile",
        *MODELS,
        DK_BENCH_OPS="reference",
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    "name", ["deform_kernel_conv", "deform_roi_pool", "depthwise_conv_per_image", "dense_deform_kernel", "scope_unfold"]
)
@pytest.mark.parametrize("key", ["CPU", "CUDA", "MPS", "XPU", "HIP", "PrivateUse1"])
def test_every_device_has_a_kernel(name, key):
    for operator in (f"dk_bench::{name}", f"dk_bench::{name}_backward"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator, key)
        compiled = torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)
        assert compiled == is_compiled(name, key)


def is_compiled(name: str, key: str) -> bool:
    """Composed operators are there where the one that they call is."""
    if any(schema.startswith(f"{name}(") for schema in loading.COMPOSED):
        return torch._C._dispatch_has_kernel_for_dispatch_key("dk_bench::unfold_columns", key)
    return key == "CPU" or key == "CUDA" and loading.HAS_CUDA


@pytest.mark.skipif(loading.CHOSEN == loading.REFERENCE, reason="without the library")
def test_schemas_are_those_of_the_library():
    schemas = loading.SCHEMAS + loading.COMPOSED
    given = {torch._C.parse_schema(f"dk_bench::{schema}").name: schema for schema in schemas}
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dk_bench::")}
    assert set(given) == registered - {"dk_bench::cpu_variant"}
    for name, schema in given.items():
        operator = getattr(torch.ops.dk_bench, name.removeprefix("dk_bench::")).default
        assert torch._C.parse_schema(f"dk_bench::{schema}") == operator._schema


def test_choice_is_checked(monkeypatch):
    monkeypatch.setenv("DK_BENCH_OPS", "fast")
    with pytest.raises(ValueError, match="variable DK_BENCH_OPS is 'fast', expected compiled or reference"):
        loading._read_choice()


def test_missing_and_broken_libraries_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "_PACKAGE", tmp_path)
    missing = "were not built" if torch.version.cuda else "is built without CUDA"
    assert missing in loading._load_cuda()
    with pytest.raises(ImportError, match="operators are missing .* `pip install -e .`, .* DK_BENCH_OPS=reference"):
        loading._load_cpu()
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="operators cannot be loaded: .*`pip install -e .`"):
        loading._load_cpu()


@pytest.mark.skipif(loading.CHOSEN == loading.REFERENCE, reason="without the library")
def test_library_of_older_sources_is_told(monkeypatch):
    monkeypatch.setattr(loading, "SCHEMAS", (*loading.SCHEMAS, "newer(Tensor input) -> Tensor"))
    with pytest.raises(ImportError, match="are older than this package, without newer; build them with `pip install"):
        loading._load_cpu()


@pytest.mark.parametrize(
    ("no_cuda", "words"),
    [
        (
            "the CUDA operators were not built",
            "as the CUDA operators were not built; `DK_BENCH_CUDA=1 pip install -e .`",
        ),
        ("this torch (2.11.0+rocm) is built without CUDA", r"as this torch \(2.11.0\+rocm\) is built without CUDA"),
    ],
)
def test_warning_says_why_and_what_to_do(monkeypatch, no_cuda, words):
    monkeypatch.setattr(loading, "_NO_CUDA", no_cuda)
    monkeypatch.setattr(loading, "CHOSEN", loading.COMPILED)
    monkeypatch.setattr(fallback, "CHOSEN", loading.COMPILED)
    with pytest.warns(UserWarning, match=f"on cuda .*{words}"):
        fallback.warn.__wrapped__("cuda")
    assert loading.operators_on("cuda") == "reference"


def test_no_warning_where_the_others_are_compiled(monkeypatch, recwarn):
    """As in a graph that was captured on the CPU, with an operator that is for it alone."""
    monkeypatch.setattr(loading, "_NO_CUDA", None)
    monkeypatch.setattr(loading, "CHOSEN", loading.COMPILED)
    monkeypatch.setattr(fallback, "CHOSEN", loading.COMPILED)
    fallback.warn.__wrapped__("cuda")
    assert not recwarn.list


def test_records_and_version_name_the_operators(monkeypatch):
    assert collect_device("cpu")["operators"] == loading.CHOSEN
    monkeypatch.setattr(loading, "CHOSEN", loading.REFERENCE)
    assert collect_device("cpu")["operators"] == "reference"
    assert loading.describe_operators() == "the reference in plain PyTorch (DK_BENCH_OPS=reference)"


def test_operators_that_are_not_compiled_are_not_timed(monkeypatch):
    from dk_bench.cli import main

    monkeypatch.setattr(loading, "CHOSEN", loading.REFERENCE)
    assert main(["bench", "ops"]) == 2


def test_sparse_input_is_named():
    given = torch.ones(2, 5, 6, 7).to_sparse(), torch.zeros(2, 18, 6, 7), torch.ones(5, 1, 4, 4)
    with pytest.raises(RuntimeError, match="input: expected a dense tensor, got layout torch.sparse_coo"):
        functional.local_deform_kernel(*given, kernel_size=3, padding=1)
