"""SLURM as far as a job's script sees it: ``sbatch``, ``srun`` and ``scontrol`` of this machine alone.

A script's ``#SBATCH`` lines and the options of ``srun`` are read strictly. Processes get the variables that SLURM's
daemons set, and its signals: those of ``--signal``, of ``scancel`` and of preemption, to whom SLURM sends them. Nodes
are loopback addresses. `FakeSlurm` is for tests; the programs are this file, started by one of their names.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

STATE = "FAKE_SLURM"  # environment variable: the folder in which the programs keep what they know
REFUSES = "FAKE_SLURM_REFUSES"  # environment variable: set, no job can be put back
PROGRAMS = ("sbatch", "scontrol", "srun")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_SIZES = {"--nodes -N": int, "--ntasks -n": int, "--ntasks-per-node": int, "--cpus-per-task -c": int}
_TEXTS = (
    *("--account -A", "--chdir -D", "--constraint -C", "--error -e", "--gpus -G", "--gpus-per-node", "--gpus-per-task"),
    *("--gres", "--job-name -J", "--mem", "--mem-per-cpu", "--output -o", "--partition -p", "--qos -q", "--signal"),
    *("--time -t", "--export"),
)
_OF_SBATCH = {"texts": ("--array -a", "--dependency -d", "--open-mode"), "flags": ("--requeue", "--no-requeue")}
_OF_SRUN = {"texts": ("--cpu-bind", "--kill-on-bad-exit -K", "--mpi"), "flags": ("--label -l", "--unbuffered -u")}


def _parser(name: str, texts: Sequence[str], flags: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(name, allow_abbrev=False)
    for names, kind in _SIZES.items():
        parser.add_argument(*names.split(), type=kind)
    for names in (*_TEXTS, *texts):
        bare = {"nargs": "?", "const": "1"} if "--kill-on-bad-exit" in names else {}
        parser.add_argument(*names.split(), **bare)
    for names in (*flags, "--exclusive", "--overlap"):
        parser.add_argument(*names.split(), action="store_true")
    return parser


def batch_options(script: Path, arguments: Sequence[str] = ()) -> argparse.Namespace:
    """Tells the options of a script's ``#SBATCH`` lines and of the command line. Raises ValueError for unknown ones."""
    words = []
    for line in script.read_text(encoding="utf-8").splitlines()[1:]:
        if line and not line.startswith("#"):  # SLURM reads no further than the first command
            break
        if line.startswith("#SBATCH"):
            words += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    parser = _parser("sbatch", **_OF_SBATCH)
    parser.error = _refuse
    return parser.parse_args([*words, *arguments])


def _refuse(message: str) -> None:
    raise ValueError(f"sbatch: {message}")


class FakeSlurm:
    """SLURM with its state in a folder; ``path`` is the folder of its programs, to stand first in PATH."""

    # Of jobs, apart from those of tests that run at the same time: processes are found by the number of their job.
    numbers = itertools.count(1000 * os.getpid() + 1)

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "bin"
        self.path.mkdir(parents=True)
        for name in PROGRAMS:
            program = self.path / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {__file__} {name} "$@"\n')
            program.chmod(0o755)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Returns the environment in which SLURM's programs are found."""
        base = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | dict(more or {})
        base["PATH"] = os.pathsep.join([str(self.path), base.get("PATH", os.defpath)])
        return base | {STATE: str(self.folder)}

    def sbatch(
        self, script: Path, *arguments: str, options: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> list[Job]:
        """Starts a script's job at once, or, of an array, one job a task. Raises ValueError for bad options."""
        parsed = batch_options(script, options)
        tasks = _array(parsed.array) if parsed.array else [None]
        numbers = [next(self.numbers) for _ in tasks]
        jobs = [Job(self, script, arguments, parsed, number, {}) for number in numbers]
        for job, task in zip(jobs, tasks, strict=True):
            if task is not None:
                ids = {"JOB_ID": numbers[0], "TASK_ID": task, "TASK_COUNT": len(tasks)}
                job.array = {f"SLURM_ARRAY_{name}": str(value) for name, value in ids.items()}
            job.start(self.environment(env))
        return jobs

    def requeued(self) -> list[str]:
        """Returns the jobs that ``scontrol requeue`` was asked to put back, oldest first."""
        log = self.folder / "requeued"
        return log.read_text().split() if log.exists() else []


def _array(text: str) -> list[int]:
    tasks: list[int] = []
    for part in text.partition("%")[0].split(","):
        begin, _, end = part.partition("-")
        tasks += range(int(begin), int(end or begin) + 1)
    return tasks


class Job:
    """A batch job: a script that runs in bash, and the steps that it starts by ``srun``."""

    def __init__(self, slurm: FakeSlurm, script: Path, arguments: Sequence[str], options, number: int, array) -> None:
        self.slurm, self.script, self.arguments, self.options = slurm, script, arguments, options
        self.number, self.array, self.restarts = number, array, 0
        self.process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        """Tells how ``scontrol`` calls it."""
        if not self.array:
            return str(self.number)
        return f"{self.array['SLURM_ARRAY_JOB_ID']}_{self.array['SLURM_ARRAY_TASK_ID']}"

    @property
    def output(self) -> Path:
        """Tells where what it prints goes."""
        pattern = self.options.output or ("slurm-%A_%a.out" if self.array else "slurm-%j.out")
        signs = {"j": self.number, "x": self.options.job_name or self.script.name}
        signs |= {"A": self.array.get("SLURM_ARRAY_JOB_ID"), "a": self.array.get("SLURM_ARRAY_TASK_ID")}
        return self.slurm.folder / re.sub(r"%([jxAa])", lambda sign: str(signs[sign[1]]), pattern)

    def start(self, environment: Mapping[str, str]) -> None:
        """Starts it, or, once it has ended, puts it back as SLURM does after ``scontrol requeue``."""
        self.restarts += self.process is not None
        variables = _of_the_job(self.options, self.number) | self.array
        if self.restarts:
            variables["SLURM_RESTART_COUNT"] = str(self.restarts)
        mode = "ab" if self.options.open_mode == "append" else "wb"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with open(self.output, mode) as output:
            self.environment = dict(environment)
            self.process = subprocess.Popen(
                [shutil.which("bash"), str(self.script), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, **variables},
                cwd=self.options.chdir,
                start_new_session=True,
            )

    def requeue(self) -> None:
        """Starts it once more, in the same environment."""
        self.start(self.environment)

    def warn(self) -> None:
        """Sends the signal of ``--signal``: with ``B:`` to the script alone, else to all processes of its steps."""
        to, _, what = (self.options.signal or "").rpartition(":")
        number = signal.Signals[f"SIG{what.partition('@')[0]}"]
        if to == "B":
            self.process.send_signal(number)
        else:
            self._send(number, steps_only=True)

    def preempt(self) -> None:
        """Sends what comes before the end, also of a time limit: SIGCONT and SIGTERM, to all processes."""
        self._send(signal.SIGCONT)
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all processes, as SLURM does half a minute later, or where a node fails; also those that start while it
        looks."""
        while [*self._processes()] or self.process.poll() is None:
            self._send(signal.SIGKILL)
            time.sleep(0.01)

    def wait(self, seconds: float = 300.0) -> int:
        """Returns the script's exit status, once no process is left."""
        try:
            status = self.process.wait(seconds)
            deadline = time.monotonic() + seconds
            while [*self._processes()] and time.monotonic() < deadline:
                time.sleep(0.05)
            return status
        finally:
            self.kill()

    def _send(self, number: int, *, steps_only: bool = False) -> None:
        for process in self._processes(steps_only=steps_only):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _processes(self, *, steps_only: bool = False) -> Iterator[int]:
        """Yields what SLURM finds by the job's cgroup: children in sessions of their own too."""
        marks = {f"SLURM_JOB_ID={self.number}".encode()} | ({b"SLURM_STEP_ID=0"} if steps_only else set())
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                        yield int(folder.name)


def _of_the_job(options: argparse.Namespace, number: int) -> dict[str, str]:
    """Returns the variables of a batch script."""
    nodes = options.nodes or 1
    tasks = options.ntasks or nodes * (options.ntasks_per_node or 1)
    hosts = ",".join(f"127.0.0.{1 + node}" for node in range(nodes))
    variables = {
        "SLURM_JOB_ID": number,
        "SLURM_JOBID": number,
        "SLURM_JOB_NAME": options.job_name or "script",
        "SLURM_JOB_NODELIST": hosts,
        "SLURM_NODELIST": hosts,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_TASKS_PER_NODE": _per_node(tasks, nodes),
        "SLURM_NODEID": 0,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURMD_NODENAME": "127.0.0.1",
    }
    for name in ("ntasks_per_node", "cpus_per_task"):
        if (value := getattr(options, name)) is not None:
            variables[f"SLURM_{name.upper()}"] = value
    return {name: str(value) for name, value in variables.items()}


def _per_node(tasks: int, nodes: int) -> str:
    """Tells the tasks of each node as SLURM does: ``2(x3)``."""
    each = -(-tasks // nodes)
    return f"{each}(x{nodes})" if nodes > 1 else str(each)


def _srun(arguments: Sequence[str]) -> int:
    """Starts the tasks of a step and returns the largest of their exit statuses."""
    parser = _parser("srun", **_OF_SRUN)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    known = {name: int(os.environ[f"SLURM_{name.upper()}"]) for name in ("nnodes", "ntasks")}
    nodes = options.nodes or known["nnodes"]
    tasks = options.ntasks or (nodes * options.ntasks_per_node if options.ntasks_per_node else known["ntasks"])
    each, hosts = -(-tasks // nodes), os.environ["SLURM_JOB_NODELIST"].split(",")[:nodes]
    of_the_step = {
        "SLURM_STEP_ID": 0,
        "SLURM_STEPID": 0,
        "SLURM_STEP_NODELIST": ",".join(hosts),
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_TASKS_PER_NODE": _per_node(tasks, nodes),
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_NNODES": nodes,
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURM_SRUN_COMM_HOST": "127.0.0.1",
    }
    if options.ntasks_per_node:
        of_the_step["SLURM_NTASKS_PER_NODE"] = options.ntasks_per_node
    started = []
    for task in range(tasks):
        place = {"SLURM_PROCID": task, "SLURM_LOCALID": task % each, "SLURM_NODEID": task // each}
        place |= {"SLURMD_NODENAME": hosts[task // each], "SLURM_GTIDS": task}
        variables = {name: str(value) for name, value in (of_the_step | place).items()}
        started.append(subprocess.Popen(options.command, env={**os.environ, **variables}, start_new_session=True))
    _forward(started)
    return _wait(started, kill=options.kill_on_bad_exit not in (None, "0"))


def _forward(started: Sequence[subprocess.Popen]) -> None:
    def pass_on(number: int, _: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, pass_on)


def _wait(started: Sequence[subprocess.Popen], *, kill: bool) -> int:
    statuses: list[int] = []
    for process in started:
        threading.Thread(target=lambda process=process: statuses.append(process.wait()), daemon=True).start()
    while len(statuses) < len(started):
        time.sleep(0.05)
        if kill and any(statuses):
            for process in started:
                if process.poll() is None:
                    process.kill()
    return max(status if status >= 0 else 128 - status for status in statuses)


def _scontrol(arguments: Sequence[str]) -> int:
    """Notes a request to put a job back, or refuses it where `REFUSES` is set, as SLURM does for some jobs."""
    if len(arguments) == 2 and arguments[0] == "requeue" and re.fullmatch(r"\d+(_\d+)?", arguments[1]):
        if os.environ.get(REFUSES):
            print("Requested operation is presently disabled for job", *arguments[1:], file=sys.stderr)
            return 1
        with open(Path(os.environ[STATE], "requeued"), "a", encoding="utf-8") as log:
            log.write(f"{arguments[1]}\n")
        return 0
    if len(arguments) == 3 and arguments[:2] == ["show", "hostnames"]:
        print(*arguments[2].split(","), sep="\n")
        return 0
    print("invalid keyword:", *arguments, file=sys.stderr)
    return 1


def _sbatch(arguments: Sequence[str]) -> int:
    """Reads a script's options, and says that it is submitted; nothing runs."""
    place = next(n for n, word in enumerate(arguments) if Path(word).is_file())
    batch_options(Path(arguments[place]), arguments[:place])
    print("Submitted batch job 1")
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": _sbatch, "srun": _srun, "scontrol": _scontrol}[sys.argv[1]](sys.argv[2:]))
