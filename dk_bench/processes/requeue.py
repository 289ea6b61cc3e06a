"""A job of SLURM puts itself back into the queue when the warning ahead of its end stops it, as under Lightning."""

import os
import signal
import subprocess

from dk_bench.processes.interrupts import Interrupted

SWITCH = "DK_BENCH_REQUEUE"  # environment variable; "0": a process puts no job back
OFF = {SWITCH: "0"}  # for what works in a job that another process of ours puts back
PATIENCE_SECONDS = 60  # with a controller that does not answer


def requeue(stop: Interrupted) -> str | None:
    """Puts the job that this process is in back into the queue where SIGUSR1 has stopped it; tells what came of that.

    None where it is left alone: outside of a job, at every other signal, under ``DK_BENCH_REQUEUE=0``, and in a run of
    W&B's agent, which is not all of its job. SLURM ends what there is of the job at once: to be called last.
    """
    warned = hasattr(signal, "SIGUSR1") and stop.signal == signal.SIGUSR1
    if not warned or not (job := job_id()) or os.environ.get(SWITCH) == "0" or os.environ.get("WANDB_SWEEP_ID"):
        return None
    try:
        command = ["scontrol", "requeue", job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else None
    except OSError as error:
        why = f"scontrol cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        why = f"no answer within {PATIENCE_SECONDS} s"
    if why is None:
        return f"job {job} was put back into the queue"
    return f"job {job} could not be put back into the queue ({why}): submit it again"


def job_id() -> str | None:
    """Tells how SLURM's commands call the job that this process is in, one of an array by both of its numbers; None
    outside of a job."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
