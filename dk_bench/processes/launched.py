"""Whether torchrun or srun has started this process as one rank of several, and which.

A launcher's variables alone do not say so: they are inherited. A shell inside a job has them, and so has what a Python
program that is a rank starts (W&B's agent, a script that tries settings). A shell script, a container or a tracer
between launcher and process starts one in its own place, and is passed over.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dk_bench.errors import UserError

LAUNCHER = "DK_BENCH_LAUNCHER"  # environment variable: torchrun or srun, where it is not seen by itself; none
TORCHRUN = (
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE MASTER_ADDR MASTER_PORT "
    "TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT".split()
)
SRUN = (
    "SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_NODEID SLURM_STEP_NUM_NODES SLURM_STEP_TASKS_PER_NODE "
    "SLURM_STEP_NODELIST SLURM_STEP_ID SLURM_JOB_ID".split()
)
AGENTS_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torch's own word for it, see torch.distributed.rendezvous
FIRST_OF_NO_STEP = 0xFFFFFFF0  # SLURM's numbers from here on are of batch scripts, interactive shells, services
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "csh", "tcsh", "fish")


@dataclass(frozen=True)
class Place:
    """The place of a rank in its launcher's world.

    Attributes:
        launcher: torchrun or srun.
        number, size: the rank among all, and how many there are.
        local, here: the rank among those of its machine, and how many those are.
        machine, machines: the machine's number, and how many there are.
        address, port: where all meet.
        attempt: counts torchrun's restarts of all of them.
        has_store: whether somebody keeps torch's store there already; else the first rank is to.
    """

    launcher: str
    number: int
    size: int
    local: int
    here: int
    machine: int
    machines: int
    address: str
    port: int
    attempt: int = 0
    has_store: bool = False


def launched() -> Place | None:
    """Tells this process's place in the world of the launcher that has started it; None where none has, or it alone.

    Raises UserError where `LAUNCHER` names one whose variables are not there, or no launcher.
    """
    asked, kinds = os.environ.get(LAUNCHER), {"torchrun": (TORCHRUN, _of_torchrun), "srun": (SRUN, _of_srun)}
    if asked not in (None, "none", *kinds):
        raise UserError(f"environment variable {LAUNCHER} is {asked!r}, expected torchrun, srun or none")
    for name, (variables, place_of) in kinds.items():
        if asked not in (None, name):
            continue
        missing = [variable for variable in variables if not os.environ.get(variable)]
        try:
            place = None if missing else place_of({variable: os.environ[variable] for variable in variables})
        except (ValueError, IndexError, TypeError):  # somebody else's variables, of the same names
            place = None
        if place is None and asked:
            what = f"{', '.join(missing)} is missing" if missing else "its variables are of no rank"
            raise UserError(f"environment variable {LAUNCHER} is {asked!r}, but {what}: expected a rank of {asked}'s")
        if place and place.size > 1 and (asked or not is_inherited(variables)):
            return place
    return None


def _of_torchrun(found: dict[str, str]) -> Place | None:
    number, size, local, here, machine, machines = (int(found[name]) for name in TORCHRUN[:6])
    port, attempt = int(found["MASTER_PORT"]), int(found["TORCHELASTIC_RESTART_COUNT"])
    agents = os.environ.get(AGENTS_STORE) == "True"
    return Place("torchrun", number, size, local, here, machine, machines, found["MASTER_ADDR"], port, attempt, agents)


def _of_srun(found: dict[str, str]) -> Place | None:
    """Returns the place in an ordinary step: a batch script and an interactive shell have numbers of their own."""
    step, job = found["SLURM_STEP_ID"], found["SLURM_JOB_ID"]
    if not (step.isdecimal() and int(step) < FIRST_OF_NO_STEP and job.isdecimal()):
        return None
    number, size, local, machine, machines = (int(found[name]) for name in SRUN[:5])
    here = tasks_per_machine(found["SLURM_STEP_TASKS_PER_NODE"])[machine]
    # As Lightning does, a port that all know without a word, but another one for every step of a job.
    port = int(os.environ.get("MASTER_PORT") or 15000 + (int(job) * 10 + int(step)) % 10000)
    address = os.environ.get("MASTER_ADDR") or _first_machine(found["SLURM_STEP_NODELIST"])
    return Place("srun", number, size, local, here, machine, machines, address, port)


def tasks_per_machine(text: str) -> list[int]:
    """Returns the number of tasks on each machine, as SLURM puts it: ``2(x3),1`` is [2, 2, 2, 1]."""
    parts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(","))
    return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]


def _first_machine(nodes: str) -> str:
    from lightning_fabric.plugins.environments import SLURMEnvironment  # seconds, that other commands need not

    return SLURMEnvironment.resolve_root_node_address(nodes)


def is_inherited(variables: Iterable[str]) -> bool:
    """Tells whether a program above this process has these variables too, and is no mere wrapper: then it is the rank,
    and this process something that it has started. False where the system has no /proc."""
    own, pid = {name: os.environ.get(name) for name in variables}, os.getppid()
    while pid and (above := _environment(pid)) is not None and all(above.get(name) == own[name] for name in own):
        if _is_program(pid):
            return True
        pid = _parent(pid)
    return False


def _environment(pid: int) -> dict[str, str] | None:
    """Returns the environment that a process was started with; None where that is not to be known."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    return dict(item.partition("=")[::2] for item in os.fsdecode(content).split("\0"))


def _is_program(pid: int) -> bool:
    """Tells whether a process is Python, or a shell at which somebody sits: one that runs no script and no command."""
    try:
        name = Path(os.readlink(f"/proc/{pid}/exe")).name
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return False
    return name.startswith("python") or (name in SHELLS and all(word.startswith("-") for word in words[1:]))


def _parent(pid: int) -> int:
    try:
        # The second field, the program's name, may hold spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
