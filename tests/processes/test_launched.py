"""Which processes take themselves for a launcher's ranks, and what those tell each other."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from cluster_cases import SLURM, TORCHRUN
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from dk_bench.errors import UserError
from dk_bench.processes import meeting
from dk_bench.processes.interrupts import Interrupted
from dk_bench.processes.launched import LAUNCHER, Place, launched, tasks_per_machine
from dk_bench.processes.launchers import VARIABLES
from dk_bench.processes.meeting import Followed, Meeting, ProcessLost
from dk_bench.processes.ranks import Rank, this_rank
from dk_bench.processes.world import OwnWorld

ROOT = Path(__file__).parents[2]
OF_TORCHRUN = TORCHRUN | {"GROUP_WORLD_SIZE": "1"}
STEP = {
    **SLURM,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.fixture
def variables(monkeypatch):
    """Puts a launcher's variables into an environment without any."""

    def enter(found):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in VARIABLES]:
            monkeypatch.delenv(name)
        for name, value in found.items():
            monkeypatch.setenv(name, value)

    return enter


def test_rank_of_torchrun(variables):
    variables(OF_TORCHRUN)
    expected = Place("torchrun", 1, 2, 1, 2, 0, 1, "10.255.255.1", 29500, 0, has_store=True)
    assert launched() == expected
    this_rank.cache_clear()
    assert this_rank() == Rank(1, 2, 29500, place=expected)
    this_rank.cache_clear()


def test_rank_of_srun(variables):
    variables(STEP)
    assert launched() == Place("srun", 1, 2, 0, 1, 1, 2, "gpu07", 15000 + 2343)
    variables(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (launched().address, launched().port) == ("10.0.0.1", 4000)
    assert tasks_per_machine("2(x3),1") == [2, 2, 2, 1] and tasks_per_machine("8") == [8]


@pytest.mark.parametrize(
    "found",
    [
        {},
        OF_TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        OF_TORCHRUN | {"RANK": "one"},
        {name: value for name, value in OF_TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"},  # Kubeflow's
        SLURM,  # a batch script's
        STEP | {"SLURM_STEP_ID": "batch"},
        STEP | {"SLURM_STEP_ID": "4294967290"},  # an interactive shell's
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {LAUNCHER: "none"},
    ],
)
def test_no_rank(variables, found):
    variables(found)
    assert launched() is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("mpirun", "expected torchrun, srun or none"), ("torchrun", "RANK, WORLD_SIZE"), ("srun", "expected a rank of")],
)
def test_launcher_that_is_named_must_be_there(variables, asked, expected):
    variables(SLURM | {LAUNCHER: asked})
    with pytest.raises(UserError, match=f"^environment variable {LAUNCHER} is '{asked}', .*{expected}"):
        launched()


# Without what the package itself imports, for which every process would take seconds.
ASK = f"""
import sys, types
sys.modules["dk_bench"] = package = types.ModuleType("dk_bench")
package.__path__ = [{str(ROOT / "dk_bench")!r}]
from dk_bench.processes.launched import launched
print(launched() is not None)
"""
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {ASK!r}], check=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="without /proc nobody knows who has started whom")
@pytest.mark.parametrize("step", [STEP, OF_TORCHRUN])
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([sys.executable, "-S", "-c", ASK], True),
        (["sh", "-c", f'{sys.executable} -S -c "$0"; true', ASK], True),  # a script around it
        ([sys.executable, "-S", "-c", CHILD], False),  # what a rank starts, as W&B's agent
        (["sh"], False),  # a shell at which somebody sits
    ],
)
def test_variables_that_are_inherited_make_no_rank(step, command, expected):
    environment = {**os.environ, **step, "MASTER_ADDR": "127.0.0.1"}
    typed = shlex.join([sys.executable, "-S", "-c", ASK]) + "\n" if command == ["sh"] else None
    done = subprocess.run(command, env=environment, input=typed, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"


@pytest.fixture
def world(monkeypatch):
    """A launcher's world: the second of two processes on the first of two machines, with three GPUs in all."""
    place = Place("srun", 1, 3, 1, 2, 0, 2, "127.0.0.1", 1)
    monkeypatch.setattr("dk_bench.processes.world.this_rank", lambda: Rank(1, 3, 1, place=place))
    return OwnWorld()


def test_world_is_the_launchers(world):
    assert world.shape("auto", "auto", 2) == {"devices": 2, "num_nodes": 2} == world.shape(-1, 2, 0)
    assert world.shape("4,5", "auto", 8) == {"devices": "4,5", "num_nodes": 2}
    assert (world.world_size(), world.local_rank(), world.node_rank()) == (3, 1, 0)
    world.set_world_size(4)  # Lightning's idea of it, for equal machines
    world.set_global_rank(2)
    assert (world.world_size(), world.global_rank()) == (3, 1)
    assert world.shape("auto", "auto", 1)["devices"] == 1 and world.local_rank() == 0  # --gpus-per-task=1
    world.check_size(3)


@pytest.mark.parametrize(
    ("devices", "nodes", "words"),
    [
        (
            4,
            "auto",
            "key 'trainer.devices' is 4, but srun has started 3 processes on 2 machines, 2 of them on this one: ",
        ),
        ("0,1,2", "auto", "key 'trainer.devices' is '0,1,2', but"),
        ("auto", 1, "key 'trainer.num_nodes' is 1, but srun has started 3 processes on 2 machines"),
    ],
)
def test_other_numbers_than_the_launchers_are_refused(world, devices, nodes, words):
    with pytest.raises(UserError, match=f"^{words}"):
        world.shape(devices, nodes, 0)


def test_several_machines_need_a_launcher(monkeypatch):
    monkeypatch.setattr("dk_bench.processes.world.this_rank", Rank)
    with pytest.raises(UserError, match=r"^key 'trainer.num_nodes' is 2, .* start it by torchrun or srun"):
        OwnWorld().shape("auto", 2, 0)
    assert OwnWorld().shape(2, 1, 0) == {"devices": 2, "num_nodes": 1}


@pytest.fixture
def three(monkeypatch):
    """The meetings of three ranks, in one process."""
    for name, seconds in (("LOOK_SECONDS", 0.01), ("BEAT_SECONDS", 0.02), ("LINGER_SECONDS", 2.0)):
        monkeypatch.setattr(meeting, name, seconds)
    monkeypatch.setattr(meeting, "SILENT_AFTER_ERROR_SECONDS", 0.5)
    port, made = find_free_network_port(), []
    for number in range(3):
        place = Place("srun", number, 3, number, 3, 0, 1, "127.0.0.1", port)
        made.append(Meeting(Rank(number, 3, port, place=place), seconds=20))
        made[-1].begin()
    return made


def each(*calls):
    """What each call, in a thread of its own, returns or raises."""
    found = [None] * len(calls)

    def run(number, call):
        try:
            found[number] = call()
        except BaseException as error:  # noqa: BLE001  it is what is looked at
            found[number] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_all_hear_what_the_first_says(three):
    assert each(*(lambda m=m: m.agree("run", {"checkpoint": None}) for m in three)) == 3 * [{"checkpoint": None}]
    assert each(*(lambda m=m: m.share("finished", lambda: None) for m in three)) == 3 * [None]
    assert each(*(lambda m=m: m.leave() for m in three)) == 3 * [None]
    for one in three:  # the next run of the program
        one.begin()
    assert each(*(lambda m=m: m.agree("next") for m in three)) == 3 * [None]


def test_another_command_is_refused_for_all(three):
    def come(one, run):
        try:
            one.agree(run)
        except UserError as error:
            return one.leave(error)

    first, *others = each(*(lambda m=m, run=run: come(m, run) for m, run in zip(three, "aab", strict=True)))
    assert str(first) == "process 3 of 3 was given run b, the first a: expected the same command for all"
    assert all(isinstance(error, Followed) and error.status == 2 for error in others)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (UserError("no such file"), ProcessLost("process 2 of 3: no such file")),
        (MemoryError("all of it"), ProcessLost("process 2 of 3: MemoryError: all of it")),
        (Interrupted(15), Interrupted(15)),
    ],
)
def test_first_speaks_for_one_that_fails(three, error, found):
    each(*(lambda m=m: m.agree("run") for m in three))

    def first():
        while (lost := three[0].lost()) is None:
            pass
        return three[0].leave(lost)

    told, ended, followed = each(first, lambda: three[1].leave(error), lambda: three[2].leave(Interrupted(15)))
    assert (type(told), str(told)) == (type(found), str(found))
    for one in (ended, followed):
        assert (one is error) if isinstance(error, MemoryError) and one is ended else isinstance(one, Followed)
        assert not isinstance(one, Followed) or one.status == told.status


def test_rank_that_is_gone_is_told_from_those_that_its_end_has_stopped(three):
    """torchrun's agent stops the others on the machine of one that was killed."""
    each(*(lambda m=m: m.agree("run") for m in three))
    silence(three[2])
    told, stopped = each(
        lambda: three[0].leave(three[0].cause(Interrupted(15), False)), lambda: three[1].leave(Interrupted(15))
    )
    assert str(told) == "process 3 of 3 is gone: it was killed, or its machine is down"
    assert isinstance(stopped, Followed) and stopped.status == 1


def silence(one):
    one._store = dist.HashStore()  # what it says is heard by nobody any more


def test_first_that_is_gone_is_told_by_the_second(three):
    each(*(lambda m=m: m.agree("run") for m in three))
    silence(three[0])
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    second, third = each(lambda: three[1].leave(broken), lambda: three[2].leave(broken))
    assert str(second) == "process 1 of 3 is gone: it was killed, or its machine is down"
    assert isinstance(third, Followed) and third.status == 1


def test_ranks_that_are_not_met_are_told():
    place = Place("srun", 1, 2, 0, 1, 1, 2, "127.0.0.1", find_free_network_port())
    with pytest.raises(ProcessLost, match="^process 2 of 2 does not find the others of its run at 127.0.0.1, port"):
        Meeting(Rank(1, 2, place.port, place=place), seconds=0.3)


def test_no_thread_is_in_torchs_store_when_python_ends(monkeypatch):
    """Python would abort there, and the launcher see a failure."""
    monkeypatch.setattr(meeting, "BEAT_SECONDS", 100.0)
    at_the_end, before = [], set(threading.enumerate())
    monkeypatch.setattr(meeting.atexit, "register", lambda call, *of: at_the_end.append((call, of)))
    place = Place("srun", 0, 2, 0, 2, 0, 1, "127.0.0.1", find_free_network_port())
    made = Meeting(Rank(0, 2, place.port, place=place), seconds=20)
    (beats,) = [thread for thread in threading.enumerate() if thread not in before]
    ((call, of),) = at_the_end
    call(*of)
    assert not beats.is_alive() and made
