"""What is recorded of a processor, and of the instruction sets that libraries chose on it."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from dk_bench.functional import loading
from dk_bench.runs import hardware, processor
from dk_bench.runs.hardware import collect_machine
from dk_bench.runs.processor import instruction_sets_here

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512dq avx512bw avx512vl avx512_bf16 rdseed
power management:

processor\t: 1
vendor_id\t: another
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A processor of two cores with two levels of caches."""
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    for index, (level, kind, size, shared) in enumerate([(1, "Data", "32K", "0"), (3, "Unified", "32M", "0-1,4")]):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "CPUS", tmp_path)
    monkeypatch.setattr(hardware, "CPUS", tmp_path)
    return tmp_path


def test_processor_and_caches(system):
    found = collect_machine(probe=False)
    flags = "sse4_2 avx avx2 fma f16c avx512f avx512dq avx512bw avx512vl avx512_bf16".split()
    told = found["processor"]
    assert told.pop("name") == "AMD EPYC"
    assert told == {"vendor": "AuthenticAMD", "family": "25", "model": "17", "stepping": "1", "flags": flags}
    assert found["caches"] == [
        {"level": 1, "type": "Data", "bytes": 32 * 1024, "cores": 1},
        {"level": 3, "type": "Unified", "bytes": 32 * 1024**2, "cores": 3},
    ]
    assert found["governor"] is None and found["cores"] >= found["usable_cores"] >= 1
    assert set(found["instruction_sets"]) == {"torch", "dk_bench"}
    assert instruction_sets_here() == ["avx512", "avx2"]
    for flag, left in (("avx512vl", ["avx2"]), ("fma", [])):
        (system / "cpuinfo").write_text(CPUINFO.replace(f" {flag}", ""))
        assert instruction_sets_here() == left


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(processor, "CPUS", tmp_path / "none")
    monkeypatch.setattr(hardware, "CPUS", tmp_path / "none")
    found = collect_machine(probe=False)
    assert found["processor"]["flags"] == [] and found["caches"] == [] and instruction_sets_here() == []


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Answers are kept in a folder of the test's own, and none is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    processor._probe.cache_clear()
    yield tmp_path / "cache" / "dk_bench"
    processor._probe.cache_clear()


def test_libraries_are_asked_under_the_environment_of_this_process(ask, monkeypatch):
    """One process; oneDNN is there in every torch for the CPUs that this suite runs on."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    found = collect_machine()
    assert found["held_by"]["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert found["instruction_sets"]["torch"] == torch.backends.cpu.get_cpu_capability()
    assert found["instruction_sets"]["dk_bench"] == torch.ops.dk_bench.cpu_variant()
    if torch.backends.mkldnn.is_available() and found["processor"]["flags"]:
        assert "SSE4.1" in found["instruction_sets"]["oneDNN"]
    assert (found["instruction_sets"]["MKL"] is not None) == torch.backends.mkl.is_available()
    assert socket.gethostname() not in json.dumps(found)


def test_the_reference_has_no_instruction_set_of_its_own(monkeypatch):
    monkeypatch.setattr(loading, "CHOSEN", loading.REFERENCE)
    assert collect_machine(probe=False)["instruction_sets"]["dk_bench"] == "reference"


def test_no_answer_of_the_libraries(ask, monkeypatch):
    def fail(*_, **__):
        raise OSError

    monkeypatch.setattr(processor.subprocess, "run", fail)
    assert processor.instruction_sets() == processor.instruction_sets(probe=False) | {"oneDNN": None, "MKL": None}
    assert not ask.exists()


def test_answers_are_kept_for_processor_and_environment(ask, monkeypatch):
    asked = []

    def answer():
        asked.append(1)
        processor._probe.cache_clear()
        return {"oneDNN": f"answer {len(asked)}", "MKL": None}

    def told():
        processor._probe.cache_clear()
        return processor.instruction_sets()["oneDNN"]

    monkeypatch.setattr(processor, "_ask", answer)
    assert [told(), told()] == ["answer 1"] * 2
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert [told(), told()] == ["answer 2"] * 2
    for path in ask.iterdir():
        path.write_text("[]")  # damaged
    assert [told(), told()] == ["answer 3"] * 2
    monkeypatch.setattr(processor, "processor", lambda: {"flags": []})
    assert told() == "answer 4"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert [told(), told()] == ["answer 5", "answer 6"]  # nothing can be kept


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ("Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors", "AVX2)"),
        ("Intel(R) Architecture processors", "Intel(R) Architecture"),
        ("Intel(R) AVX-512 with support for INT8, and Intel(R) AMX with INT8 and BF16", "with INT8 and BF16"),
    ],
)
def test_words_of_libraries(told, understood):
    said = f"MKL_VERBOSE oneMKL 2024.0 for Intel(R) 64 architecture {told}, Lnx 2.60GHz lp64 gnu_thread"
    found = processor.SAID["MKL"].search(said)[1]
    assert found.startswith("Intel(R) A") and found.endswith(understood)
