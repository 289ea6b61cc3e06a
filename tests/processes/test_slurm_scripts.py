"""The scripts of docs/cluster.md: bash reads them, SLURM knows their options, and the tests' own SLURM runs them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from fake_slurm import FakeSlurm, batch_options
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from training_cases import EPOCHS, TINY
from wandb_server import ENTITY, serve

from dk_bench.runs.record import find_records, read_record

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BATCH = {re.search(r"--job-name=(\w+)", text)[1]: text for text in SCRIPTS if "#SBATCH" in text}
# In place of dk-bench: says how it was called, and ends by the signal as dk-bench does.
STOPPABLE = """#!/bin/bash
trap 'echo "stopped $SLURM_PROCID"; exit 138' USR1
echo "ready $*"
while true; do read -t 0.1 <> <(:); done
"""


@pytest.fixture
def slurm(tmp_path):
    return FakeSlurm(tmp_path / "slurm")


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def until(job, text, count=1):
    deadline = time.monotonic() + 300
    while (job.output.read_text() if job.output.exists() else "").count(text) < count:
        assert job.process.poll() is None and time.monotonic() < deadline, job.output.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("text", SCRIPTS)
def test_bash_reads_it_and_slurm_knows_its_options(tmp_path, text):
    path = write(tmp_path, "job.sh", text)
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False).stderr == ""
    checker = Path(sys.executable).with_name("shellcheck")  # it has no wheel for every machine
    if checker.exists():
        found = subprocess.run([checker, "-S", "warning", path], capture_output=True, text=True, check=False)
        assert found.stdout == ""
    if "#SBATCH" not in text:
        return
    options = batch_options(path)
    assert options.requeue and options.open_mode == "append"  # a job that goes on overwrites no output
    assert re.fullmatch(r"(B:)?USR1@\d+", options.signal) and options.time
    assert ("%a" in options.output) == bool(options.array)
    # Without B: the signal goes to what srun starts alone, with B: to the script, which has to pass it on.
    assert ("trap" in text) == options.signal.startswith("B:") == ("srun" not in text)
    assert "srun" not in text or "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text


def test_page_has_a_script_of_each_kind():
    assert {"dk", "nodes", "sweep", "agents"} <= BATCH.keys() and len(SCRIPTS) > len(BATCH)


TRAIN = """
import os, sys, time
import pytorch_lightning as pl
from dk_bench.cli import main
from dk_bench.processes import interrupts
from dk_bench.training import run

class Wait(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and "SLURM_RESTART_COUNT" not in os.environ:
            print("ready", flush=True)
            while not interrupts.noted():
                time.sleep(0.1)

make_trainer = run.make_trainer
run.make_trainer = lambda task, callbacks, *rest: make_trainer(task, [Wait(), *callbacks], *rest)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_run_is_put_back_at_the_warning_and_goes_on_to_its_end(tmp_path, slurm):
    """On two machines, then, put back by hand, on one."""
    (tmp_path / "train.py").write_text(TRAIN)
    write(slurm.path, "dk-bench", f'#!/bin/sh\nexec {sys.executable} {tmp_path}/train.py "$@"\n')
    write(tmp_path, "c.yaml", "{}")
    text = re.sub(r"configs/\S+", f"{tmp_path}/c.yaml", BATCH["nodes"])
    script, one = write(tmp_path, "nodes.sh", text), ["--ntasks-per-node=1"]
    env = {"SCRATCH": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["MASTER_PORT"] = str(find_free_network_port())  # by the job's number others may meet there, who test too
    overrides = (*TINY, "trainer.accelerator=cpu")
    (job,) = slurm.sbatch(script, *overrides, options=["--nodes=2", *one], env=env)
    until(job, "ready", count=2)
    job.warn()
    assert job.wait() == 138, job.output.read_text()
    assert slurm.requeued() == [job.name]
    said = [line for line in job.output.read_text().splitlines() if line.startswith("dk-bench train: ")]
    assert said == [
        "dk-bench train: interrupted by SIGUSR1; the same command goes on from the run's last checkpoint",
        f"dk-bench train: job {job.name} was put back into the queue",
    ]
    (job,) = slurm.sbatch(script, *overrides, options=["--nodes=1", *one], env=env | {"SLURM_RESTART_COUNT": "1"})
    assert job.wait() == 0, job.output.read_text()
    (path,) = find_records([tmp_path / "runs"])
    record = read_record(path)
    assert record.status == "finished" and len(record.metrics["epochs"]) == EPOCHS
    assert [(attempt["error"], attempt["steps"]) for attempt in record.attempts] == [
        ("interrupted by SIGUSR1", 5),
        (None, 7),
    ]
    assert [attempt["device"]["devices"] for attempt in record.attempts] == [2, 1]


def test_job_that_is_put_back_writes_on_into_its_output(tmp_path, slurm):
    write(slurm.path, "dk-bench", STOPPABLE)
    (job,) = slurm.sbatch(write(tmp_path, "train.sh", BATCH["dk"]), "seed=1", env={"SCRATCH": str(tmp_path)})
    for start in (1, 2):
        until(job, "ready train configs/imagenet/resnet50dw_dk.yaml trainer.devices=8", count=start)
        job.warn()
        assert job.wait() == 138
        job.requeue()
    job.kill()
    assert job.output.read_text().count(f"output={tmp_path}/runs seed=1\nstopped 0\n") == 2


def test_every_job_of_an_arrays_sweep_is_warned(tmp_path, slurm):
    write(slurm.path, "dk-bench", STOPPABLE)
    jobs = slurm.sbatch(write(tmp_path, "sweep.sh", BATCH["sweep"]), env={"SCRATCH": str(tmp_path)})
    for job in jobs:
        until(job, f"ready sweep sweeps/imagenet_scope.yaml --output {tmp_path}/runs")
        job.warn()
    assert [job.wait() for job in jobs] == [138] * 4
    assert all(job.output.read_text().endswith("stopped 0\n") for job in jobs)


AGENT = """#!/bin/bash
trap 'echo told' USR1
trap 'echo ends; exit 0' TERM
echo "ready $*"
while true; do read -t 0.1 <> <(:); done
"""


def test_script_of_agents_puts_its_job_back(tmp_path, slurm):
    write(slurm.path, "wandb", AGENT)
    script = write(tmp_path, "agents.sh", BATCH["agents"])
    job, other = slurm.sbatch(script, "e/p/s", options=["--array=3-4"])
    for each in (job, other):
        until(each, "ready agent --forward-signals e/p/s")
    job.warn()
    assert job.wait() == 138 and job.output.read_text().splitlines()[1:] == ["told", "ends"]
    assert slurm.requeued() == [job.name] == [f"{job.number}_3"]
    other.preempt()  # which SLURM puts back by itself
    other.wait()
    assert slurm.requeued() == [job.name]


@pytest.mark.parametrize("status", [0, 3])
def test_job_of_an_agent_that_ends_by_itself_ends_as_that(tmp_path, slurm, status):
    write(slurm.path, "wandb", f"#!/bin/bash\nexit {status}\n")
    (job,) = slurm.sbatch(write(tmp_path, "agents.sh", BATCH["agents"]), options=["--array=0"])
    assert job.wait() == status and slurm.requeued() == []


RUN = """
import signal, sys, time
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(138))
signal.signal(signal.SIGTERM, lambda *_: None)  # together with the first one
print("ready", *sys.argv[1:], flush=True)
while not stopped and "a=2" not in sys.argv:
    time.sleep(0.1)
sys.exit(*stopped)
"""


def test_wandbs_agent_passes_the_signal_on_and_takes_no_further_run(tmp_path, slurm):
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "-S", str(tmp_path / "run.py"), "${args_no_hyphens}"]
    sweep = {"method": "grid", "parameters": {"a": {"values": [1, 2]}}, "command": command}
    write(slurm.path, "wandb", f'#!/bin/sh\nexec {sys.executable} -m wandb "$@"\n')
    with serve() as server:
        server.UpsertSweep(yaml.safe_dump(sweep | {"program": "run.py"}), "bench")
        settings = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
        env = settings | {"WANDB_CONFIG_DIR": str(tmp_path / "config"), "no_proxy": "127.0.0.1"}
        script = write(tmp_path, "agents.sh", BATCH["agents"])
        (job,) = slurm.sbatch(script, f"{ENTITY}/bench/sweep0", options=["--array=0", f"--chdir={tmp_path}"], env=env)
        until(job, "ready a=1")
        job.warn()
        job.wait()
        assert slurm.requeued() == [job.name] and "a=2" not in job.output.read_text(), job.output.read_text()
        job.requeue()
        job.wait()
        assert "ready a=2" in job.output.read_text()


def test_agents_of_one_machine_have_a_gpu_each_and_share_the_cores(tmp_path):
    (text,) = [text for text in SCRIPTS if "#SBATCH" not in text]
    write(tmp_path, "nproc", "#!/bin/bash\necho 8\n")
    write(tmp_path, "wandb", AGENT.replace('"ready $*"', '"ready $* on $CUDA_VISIBLE_DEVICES by $OMP_NUM_THREADS"'))
    script = write(tmp_path, "agents.sh", text)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(script), "e/p/s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        said = sorted(process.stdout.readline().strip() for _ in range(4))
        assert said == [f"ready agent --forward-signals e/p/s on {gpu} by 2" for gpu in range(4)]
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().split() == ["ends"] * 4
    assert shlex.split(text)  # quotes are closed
