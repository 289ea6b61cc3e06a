"""tools/gpu_ablation.py where there is no GPU: what is packed is run to the end, with records of the usual form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from training_cases import TINY

from dk_bench.config import load_config, to_dict
from dk_bench.runs.record import find_records, read_record

TOOL = Path(__file__).parents[2] / "tools" / "gpu_ablation.py"
EPOCHS, SEEDS, MODELS = 2, (0, 1), ("test_resnetdw", "test_resnetdw_dk")


def write_sweep(folder: Path) -> Path:
    config = load_config(None, [*TINY, f"optim.epochs={EPOCHS}", "output=runs"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(to_dict(config)))
    path = folder / "sweep.yaml"
    command = ["dk-bench", "train", str(folder / "tiny.yaml"), "${args_no_hyphens}"]
    parameters = {"model.name": {"values": list(MODELS)}, "seed": {"values": list(SEEDS)}}
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    return path


def call(folder: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with the packed runs, and what the tool says of them after a run."""
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "photographs").mkdir()
    (folder / "photographs" / "train.tar").write_bytes(b"a tar")
    call(folder, "pack", "pack", write_sweep(folder), "--data", folder / "photographs")
    return folder, run(folder)


def run(folder: Path) -> str:
    return call(
        folder,
        "run",
        "pack",
        "--seconds",
        500,
        "--workers",
        2,
        "--output",
        "out",
        "--weights",
        f"tiny/{MODELS[1]}",
        "--override",
        f"data.cache={folder / 'cache'}",
    )


def test_seeds_are_whole_blocks(packed):
    jobs = json.loads((packed[0] / "pack" / "jobs.json").read_text())
    assert [(job["point"]["seed"], job["argv"][-2]) for job in jobs] == [
        (seed, f"model.name={model}") for seed in SEEDS for model in MODELS
    ]


def test_code_and_data_travel(packed):
    folder = packed[0]
    assert list(folder.glob("pack/code/dk_bench/_cpu*.so")) and (folder / "pack" / "code" / ".git").exists()
    assert (folder / "data" / "photographs" / "train.tar").read_bytes() == b"a tar"


def test_records_weights_and_states_come_back(packed):
    folder, said = packed
    assert "4 runs, 2 at a time" in said and '{"finished": 4}' in said
    for name in ("records.tar.gz", "logs.tar.gz", "weights-0.tar"):
        with tarfile.open(folder / "out" / name) as archive:
            archive.extractall(folder / "back", filter="data")
    records = [read_record(path) for path in find_records([folder / "back"])]
    assert sorted((r.seed, r.model["name"], r.status) for r in records) == [
        (seed, model, "finished") for seed in SEEDS for model in MODELS
    ]
    weights = [torch.load(path, weights_only=True) for path in (folder / "back").rglob("last.ckpt")]
    assert len(weights) == len(SEEDS) and all(w["state_dict"] and not w["optimizer_states"] for w in weights)
    assert set(json.loads((folder / "out" / "states.json").read_text()).values()) == {"finished"}


def test_what_has_a_record_is_not_packed_again(packed):
    folder = packed[0]
    with tarfile.open(folder / "out" / "records.tar.gz") as archive:
        archive.extractall(folder / "results", filter="data")
    gone = next(path for path in find_records([folder / "results"]) if read_record(path).model["name"] == MODELS[1])
    seed = read_record(gone).seed
    gone.unlink()
    said = call(folder, "pack", "again", folder / "sweep.yaml", "--done", folder / "results")
    (job,) = json.loads((folder / "again" / "jobs.json").read_text())
    assert "1 runs" in said and (job["point"]["seed"], job["argv"][-2]) == (seed, f"model.name={MODELS[1]}")


def test_epochs_are_laid_down_once_for_all_models_of_a_seed(packed):
    files = list((packed[0] / "cache").glob("*.*-*"))
    assert len(files) == EPOCHS * len(SEEDS) and len({path.name.partition(".")[0] for path in files}) == 1


def test_another_call_runs_nothing_that_has_finished(packed):
    assert "0 runs, 2 at a time" in run(packed[0])
