"""torchrun on two machines, which are both this one: the demo's training to one process's result, killed in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from new_python import run_new_python

from dk_bench.runs.record import find_records, read_record
from dk_bench.training import load_model

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SMALL = (
    *("data.size=32", "data.batch_size=8", "data.procedural.train_images=26", "data.procedural.val_images=13"),
    *("optim.epochs=3", "trainer.accelerator=cpu", "model.name=test_resnetdw_dcn_dk"),
    *("trainer.precision=64-true", "trainer.sync_batchnorm=true", "trainer.checkpoint_every_n_steps=2"),
)
PATIENCE = 280
# `dk-bench`, of which the rank that is named first ends in the fifth step: after a checkpoint inside the second epoch.
KILLED = """
import os, signal, sys
from dk_bench.cli import main
from dk_bench.training.callbacks import RunKeeper

class Killed(RunKeeper):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5 and trainer.global_rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

Killed.__qualname__ = "RunKeeper"
import dk_bench.training.run
dk_bench.training.run.RunKeeper = Killed
sys.exit(main(sys.argv[2:]))
"""

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TORCH_CPP_LOG_LEVEL": "ERROR"}


def two_machines(*program: str, cwd: Path) -> tuple[list[int], str]:
    """Exit statuses and output of two torchruns of two processes each."""
    meeting = f"127.0.0.1:{find_free_network_port()}"
    options = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=demo"]
    options += [f"--rdzv-endpoint={meeting}", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--local-addr=127.0.0.1", *program]
    logs, started = [cwd / f"{machine}.log" for machine in range(2)], []
    try:
        for log in logs:
            with open(log, "wb") as stream:
                process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment(), cwd=cwd)
            started.append(process)
        statuses = [process.wait(PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    return statuses, "".join(log.read_text() for log in logs)


def the_run(folder: Path):
    (path,) = find_records([folder])
    return path.parent, read_record(path)


def one_process(*arguments: str) -> None:
    done = run_new_python(["-m", "dk_bench", "train", str(DEMO), *SMALL, *arguments], env=environment())
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    one_process(f"output={folder}", "trainer.devices=1")
    return the_run(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What the death of one of four processes leaves: statuses, output, the folder of runs."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.py").write_text(KILLED)
    statuses, said = two_machines("killed.py", "2", "train", str(DEMO), *SMALL, f"output={folder / 'runs'}", cwd=folder)
    return statuses, said, folder / "runs"


def test_rank_that_is_killed_ends_all_with_one_sentence(killed):
    statuses, said, folder = killed
    assert all(statuses)
    ours = [line for line in said.splitlines() if line.startswith(("failed:", "dk-bench train:")) or " 3 of 4 " in line]
    why = "process 3 of 4 is gone: it was killed, or its machine is down"
    assert ours == [f"failed: {why}"], said
    run, record = the_run(folder)
    assert (record.status, record.error) == ("failed", why) and len(record.metrics["epochs"]) == 1
    assert record.device["devices"] == 4 and (run / "last.ckpt").exists()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_it_goes_on_to_one_processs_result(killed, expected, tmp_path, processes):
    """In float64 what is left between numbers of processes is the order of sums, so that the tolerance can be tight."""
    shutil.copytree(killed[2], tmp_path / "runs")
    output = f"output={tmp_path / 'runs'}"
    if processes == 4:
        statuses, said = two_machines("-m", "dk_bench", "train", str(DEMO), *SMALL, output, cwd=tmp_path)
        assert statuses == [0, 0], said[-3000:]
        assert said.count("record: ") == 1 and "epoch 3/3" in said and "epoch 1/3" not in said
    else:
        one_process(output, f"trainer.devices={processes}")
    (run, record), (of_one, right) = the_run(tmp_path / "runs"), expected
    assert [attempt["device"]["devices"] for attempt in record.attempts] == [4, processes]
    assert record.config_hash == right.config_hash and record.status == "finished"
    for epoch, epoch_of_one in zip(record.metrics["epochs"], right.metrics["epochs"], strict=True):
        for name in ("train/loss", "val/loss", "val/top1", "val/top5", "lr"):
            assert epoch[name] == pytest.approx(epoch_of_one[name], rel=1e-6), name
    weights, weights_of_one = (load_model(folder / "last.ckpt").state_dict() for folder in (run, of_one))
    assert weights.keys() == weights_of_one.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, weights_of_one[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert all(value.any() for name, value in weights.items() if name.endswith("_offset.bias"))
