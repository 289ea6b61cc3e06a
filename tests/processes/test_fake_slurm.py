"""The tests' own SLURM does what SLURM does: variables of every task, signals to whom they go, and requeueing."""

import time

import pytest
from fake_slurm import FakeSlurm, batch_options

LINES = "#!/bin/bash\n#SBATCH --job-name=dk --nodes=2 --ntasks-per-node=2\n#SBATCH --signal={}USR1@120  # ahead\n"
NAMES = "SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_NTASKS SLURM_NNODES SLURM_JOB_NODELIST SLURM_STEP_ID"
WAITS = "trap 'echo told {}; exit 3' USR1; echo ready; while true; do read -t 0.1 <> <(:); done"


@pytest.fixture
def slurm(tmp_path):
    return FakeSlurm(tmp_path / "slurm")


def script(tmp_path, text):
    path = tmp_path / "job.sh"
    path.write_text(text)
    return path


def until(job, text):
    deadline = time.monotonic() + 60
    while job.output.read_text().count("ready") < text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_task_of_srun_knows_its_place(tmp_path, slurm):
    shown = ":".join(f"${name}" for name in NAMES.split())
    (job,) = slurm.sbatch(script(tmp_path, LINES.format("") + f"srun bash -c 'echo {shown}'; exit 5\n"))
    assert job.wait() == 5
    places = [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]
    expected = [":".join(map(str, (*place, 4, 2, "127.0.0.1,127.0.0.2", 0))) for place in places]
    assert sorted(job.output.read_text().splitlines()) == expected


@pytest.mark.parametrize("to, told", [("", 4), ("B:", 1)])
def test_signal_goes_to_the_steps_or_to_the_script(tmp_path, slurm, to, told):
    waits = WAITS.format("$BASHPID")
    body = f"{waits}\n" if to else f'srun bash -c "{waits.replace("$", chr(92) + "$")}"\n'
    (job,) = slurm.sbatch(script(tmp_path, LINES.format(to) + body))
    until(job, told)
    job.warn()
    assert job.wait() == 3
    assert job.output.read_text().count("told") == told


def test_requeue_of_a_job_and_of_one_of_an_array(tmp_path, slurm):
    text = LINES.format("") + "echo run ${SLURM_RESTART_COUNT:-0}\nscontrol requeue $SLURM_JOB_ID\n"
    (job,) = slurm.sbatch(script(tmp_path, text), options=["--open-mode=append"])
    job.wait()
    job.requeue()
    assert job.wait() == 0 and job.output.read_text() == "run 0\nrun 1\n" and slurm.requeued() == [job.name] * 2
    text = "#!/bin/bash\n#SBATCH --array=3-4%1\nscontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n"
    jobs = slurm.sbatch(script(tmp_path, text))
    assert [job.wait() for job in jobs] == [0, 0]
    assert sorted(slurm.requeued()[2:]) == [f"{jobs[0].number}_{task}" for task in (3, 4)]


def test_preemption_reaches_every_process(tmp_path, slurm):
    text = "#!/bin/bash\nsrun setsid bash -c 'trap \"echo told; exit 3\" TERM; echo ready; sleep 60 & wait' & wait\n"
    (job,) = slurm.sbatch(script(tmp_path, text))
    until(job, 1)
    job.preempt()
    job.wait()
    assert "told" in job.output.read_text()


def test_options_that_slurm_has_not_are_refused(tmp_path):
    for line in ("--gpu=1", "--nodes=two", "--tasks-per-core"):
        with pytest.raises(ValueError, match="sbatch: "):
            batch_options(script(tmp_path, f"#!/bin/bash\n#SBATCH {line}\n"))
    assert batch_options(script(tmp_path, "#!/bin/bash\ntrue\n#SBATCH --gpu=1\n")).gpus is None
