"""Variables that launchers of many processes (srun, torchrun, mpirun, ...) set, and how they are taken away.

They are read once, to tell which process of its run this one is, see `dk_bench.processes.ranks`. After that no library
and nothing that this process starts sees them: what they start is nobody's rank.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from dk_bench.processes.launched import LAUNCHER
from dk_bench.processes.ranks import RANK, this_rank

# Rank, size and meeting place of a world of processes. What else a job says (its id, its cores) is left alone.
VARIABLES = (
    RANK,
    LAUNCHER,
    # torchrun and what follows it: Lightning, Kubeflow, DeepSpeed
    *"RANK LOCAL_RANK NODE_RANK GROUP_RANK ROLE_RANK ROLE_NAME CROSS_RANK CROSS_SIZE LOCAL_SIZE WORLD_SIZE".split(),
    *"LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_*".split(),
    # SLURM
    *"SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE".split(),
    *"SLURM_TASKS_PER_NODE SLURM_STEP_NUM_TASKS SLURM_STEP_TASKS_PER_NODE SLURM_GTIDS SLURM_TASK_PID".split(),
    # MPI: Open MPI, MPICH, Intel's, MVAPICH, Cray's; LSF's jsrun; Flux; Horovod
    *"OMPI_COMM_WORLD_* OMPI_UNIVERSE_SIZE PMI_* PMIX_* MPI_LOCALRANKID MPI_LOCALNRANKS MV2_COMM_WORLD_*".split(),
    *"PALS_RANKID PALS_LOCAL_RANKID PALS_NODEID JSM_NAMESPACE_* LSB_DJOB_RANKFILE".split(),
    *"FLUX_TASK_RANK FLUX_TASK_LOCAL_ID HOROVOD_*RANK HOROVOD_*SIZE".split(),
    # Lightning's: defaults of its Trainer, and seeds
    *"PL_TRAINER_* PL_GLOBAL_SEED PL_SEED_WORKERS".split(),
)
SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")

_hidden: dict[str, str] = {}  # what `ordinary_environment` has taken away, while its block lasts


def is_launchers(name: str) -> bool:
    """Tells whether an environment variable is one by which launchers tell a process its place among many."""
    return any(fnmatchcase(name, pattern) for pattern in VARIABLES)


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment for a process that is nobody's rank."""
    return {name: value for name, value in environment.items() if not is_launchers(name)}


@contextmanager
def ordinary_environment() -> Iterator[None]:
    """Takes launchers' variables away while the block lasts, those that it sets itself afterwards: libraries read them
    wherever they like (Lightning, to load another run's checkpoint inside a SLURM job; torch, to meet elsewhere)."""
    this_rank()
    taken = _take_launchers()
    _hidden.update(taken)
    try:
        yield
    finally:
        _take_launchers()
        os.environ.update(taken)
        for name in taken:
            _hidden.pop(name, None)  # a block inside this one may have taken it again


def announced_world() -> str | None:
    """Returns the variable by which a launcher announces several processes, as ``NAME=value``, or None."""
    sizes = ((name, _hidden.get(name, os.environ.get(name, ""))) for name in SIZES)
    return next((f"{name}={value}" for name, value in sizes if value.isdecimal() and int(value) > 1), None)


def _take_launchers() -> dict[str, str]:
    return {name: os.environ.pop(name) for name in [*filter(is_launchers, os.environ)]}
