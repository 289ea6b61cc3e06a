"""Which cells a sweep at W&B's server has, and how each stands; without a server but where one must not answer."""

import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import wandb as wandb_package
import yaml
from wandb_server import ENTITY, WandbServer, grid_points, serve

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.runs.wandb_server import RunAtWandb
from dk_bench.sweep import wandb_requeue
from dk_bench.sweep.wandb_cells import list_cells
from dk_bench.sweep.wandb_onlooker import WandbOnlooker
from dk_bench.sweep.wandb_requeue import Queue, sort_out

GRID = {
    "program": "dk-bench",
    "method": "grid",
    "command": ["dk-bench", "train", "c.yaml", "${args_no_hyphens}"],
    "parameters": {"optim.lr": {"values": [0.1, 4.0]}, "seed": {"values": [1, 2]}},
}


@dataclass
class Server:
    """What `SweepAtWandb` tells."""

    config: dict
    handed: list = field(default_factory=list)
    name: str = "abc"
    path: str = "me/bench/abc"
    entity: str = "me"
    project: str = "bench"

    def runs(self):
        return self.handed

    def claim(self, run_id, name):
        return True


def run(name, state, config, *, minutes=0.0, **summary):
    then = datetime.now(timezone.utc) - timedelta(minutes=minutes)
    return RunAtWandb(name, state, config, summary, then, then, SimpleNamespace(metadata={"host": f"node-{name}"}))


def states(server):
    return {cell.name: cell.told() for cell in list_cells(server)[0]}


def test_cells_are_told_with_what_became_of_their_runs():
    first, second = {"optim.lr": 0.1, "seed": 1, "more": 0}, {"optim.lr": 0.1, "seed": 2}
    third, fourth = {"optim.lr": 4, "seed": 1}, {"optim.lr": 4.0, "seed": 2}
    runs = [
        *(run("a", "failed", first, error="CUDA\nerror"), run("b", "finished", first, minutes=90)),
        *(run("c", "crashed", second, minutes=20), run("d", "running", second)),
        *(run("e", "running", third), run("f", "failed", third, error="disk full")),
        run("g", "pending", fourth, minutes=15),
        run("h", "running", {"_wandb": {}}),
    ]
    cells, strays = list_cells(Server(GRID, runs))
    assert [cell.told() for cell in cells] == [
        "finished (run b)",
        "running (run d)",
        "running (run e)",
        "crashed (run g: not heard of for 15 min)",
    ]
    assert [cell.name for cell in cells][2] == "optim.lr=4 seed=1" and [stray.id for stray in strays] == ["h"]
    assert [cell.is_lost for cell in cells] == [False, False, False, True]
    assert states(Server(GRID, runs[:1]))["optim.lr=0.1 seed=1"] == "failed (run a: CUDA error)"


@pytest.mark.parametrize("is_running", [True, False])
def test_what_agents_are_still_given_is_left_to_them(is_running):
    runs = [
        run("a", "finished", {"optim.lr": 0.1, "seed": 1}),
        run("b", "preempted", {"optim.lr": 0.1, "seed": 2}, error="interrupted by SIGUSR1"),
        run("c", "killed", {"optim.lr": 4, "seed": 1}),
    ]
    ours, given = sort_out(list_cells(Server(GRID, runs))[0], is_running)
    assert [cell.state for cell in given] == (["preempted", "never started"] if is_running else [])
    assert [cell.state for cell in ours] == (["killed"] if is_running else ["preempted", "killed", "never started"])


def test_runs_that_the_server_ends_early_are_not_lost():
    config = GRID | {"early_terminate": {"type": "hyperband", "min_iter": 3}, "metric": {"name": "val/top1"}}
    stopped = run("a", "failed", {"optim.lr": 0.1, "seed": 1}, error="interrupted by SIGTERM")
    for server, is_lost in ((Server(config, [stopped]), False), (Server(GRID, [stopped]), True)):
        cells, _ = list_cells(server)
        assert cells[0].is_lost == is_lost
    assert "early_terminate ends such runs" in states(Server(config, [stopped]))["optim.lr=0.1 seed=1"]


@pytest.mark.parametrize(
    ("state", "error", "is_lost"),
    [
        ("preempted", "interrupted by SIGUSR1", True),
        ("failed", "interrupted by SIGINT", True),
        ("failed", "interrupted", True),
        ("failed", "interrupted by SIGTERM", False),
        ("killed", None, False),
    ],
)
def test_only_by_sigterm_does_the_server_end_runs_early(state, error, is_lost):
    """Any other signal is somebody else's, and the run is trained again, as without early_terminate."""
    config = GRID | {"early_terminate": {"type": "hyperband", "min_iter": 3}, "metric": {"name": "val/top1"}}
    server = Server(config, [run("a", state, {"optim.lr": 0.1, "seed": 1}, **({"error": error} if error else {}))])
    cells, _ = list_cells(server)
    assert (cells[0].is_lost, cells[0] in sort_out(cells, False)[0]) == (is_lost, is_lost)
    assert (WandbOnlooker(server, stalled_after=600).rows()[0].state == "stopped") != is_lost


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_cells_of_another_method_are_those_that_were_handed_out(method):
    server = Server(GRID | {"method": method, "parameters": {"optim.lr": {"min": 0.0, "max": 1.0}}})
    assert states(server) == {}
    server.handed = [run("a", "failed", {"optim.lr": 0.25, "seed": 0}), run("b", "finished", {"optim.lr": 0.5})]
    server.handed.append(run("c", "finished", {"optim.lr": 0.25}))
    assert states(server) == {"optim.lr=0.25": "finished (run c)", "optim.lr=0.5": "finished (run b)"}


def test_cell_is_found_again_whatever_agents_are_handed_meanwhile(tmp_path, monkeypatch):
    """Its name lists what varies among the points handed out so far."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_requeue, "ASK_SECONDS", -1.0)
    parameters = {"optim.lr": {"min": 0.0, "max": 1.0}, "output": {"value": "out"}}
    handed = [run("a", "crashed", {"optim.lr": 0.25, "output": "out"})]
    server = Server(GRID | {"method": "bayes", "parameters": parameters}, handed)
    queue = Queue(server, output="here")
    (job,) = queue.jobs(queue.cells)
    handed.append(run("b", "running", {"optim.lr": 0.5, "output": "out"}))
    job.look()
    assert [cell.name for cell in queue.cells] == ["optim.lr=0.25", "optim.lr=0.5"] and job.name == "abc"
    assert job.state == "waiting" and job.environment["WANDB_RUN_ID"] == "a" and "output=here" in job.argv
    handed[0] = run("a", "finished", {"optim.lr": 0.25, "output": "out"})
    job.look()
    assert (job.state, job.reason) == ("skipped", "finished elsewhere, run a")
    del handed[0]
    job.look()
    assert (job.state, job.reason) == ("failed", "its run is no longer at W&B's server")


def test_every_run_of_wandbs_own_grid_search_has_its_cell():
    parameters = {
        "whole": {"values": [4.0, 1e-5, 1e30, -0.0]},
        "range": {"min": 1, "max": 3, "distribution": "int_uniform"},
        "steps": {"min": 0.0, "max": 1.0, "q": 0.5, "distribution": "q_uniform"},
        "nothing": {"value": None},
        "list": {"values": [[1.0, 2.5], ["a b"]]},
        "nested": {"parameters": {"b": {"values": [1, 0.5]}, "a": {"parameters": {"c": {"value": False}}}}},
    }
    config = GRID | {"parameters": parameters}
    points = [{key: item["value"] for key, item in point.items()} for point in grid_points(config, most=1000)]
    cells, strays = list_cells(Server(config, [run(str(n), "running", point) for n, point in enumerate(points)]))
    assert len(cells) == len(points) == 4 * 3 * 2 * 2 * 2 and not strays
    assert [cell.run.id for cell in cells] == [str(n) for n in range(len(cells))]


def test_watching_tells_progress_and_time_left(capsys):
    now = time.time()
    config = {"optim.epochs": 10, "config_hash": "cell"}
    parameters = GRID["parameters"] | {"seed": {"values": [1, 2, 3, 4]}}
    points = [config | {"optim.lr": lr, "seed": seed} for lr in (0.1, 4) for seed in (1, 2, 3, 4)]
    at_work = {"epoch": 4, "_runtime": 400, "val/top1": 55.5}
    runs = [
        run("a", "running", points[0], _timestamp=now - 10, **at_work),
        run("b", "running", points[1], _timestamp=now - 700, **at_work),
        run("c", "running", points[2]),
        run("d", "crashed", points[3], minutes=30, epoch=2),
        run("e", "failed", points[4], error="disk full"),
        run("f", "finished", points[5], epoch=9, _runtime=1000, **{"val/top1": 60}),
        run("g", "killed", points[6]),
    ]
    server = Server(GRID | {"parameters": parameters, "metric": {"name": "val/top1"}}, runs)
    onlooker = WandbOnlooker(server, stalled_after=600)
    rows = onlooker.rows()
    told = [str(row).partition(" optim.lr=")[::2] for row in rows]
    assert told[0] == (
        "running",
        "0.1 seed=1: on node-a, epoch 4 of 10, val/top1 55.5, last step 10 s ago, about 10 min left",
    )
    assert told[1][0] == "stalled" and told[1][1].endswith("nothing logged in 12 min")
    assert [state for state, _ in told[2:]] == ["starting", "cut off", "failed", "finished", "cut off", "waiting"]
    assert told[4][1].endswith(": disk full") and "epoch 10 of 10, val/top1 60" in told[5][1]
    assert rows[0].left == pytest.approx(590, abs=5) and {row.kind for row in rows[:7]} == {"cell"}

    def gone():
        raise UserError("me/bench/abc: no answer")

    server.runs = gone
    assert onlooker.rows() == rows and "no answer; shown is what it told before" in capsys.readouterr().err
    with pytest.raises(UserError, match="no answer"):
        WandbOnlooker(server, stalled_after=600).rows()


def test_run_that_a_signal_stopped_is_cut_off_as_in_folders():
    """W&B has it as failed, by its exit status."""
    errors = ["interrupted by SIGTERM", "disk full"]
    runs = [run(error, "failed", {"optim.lr": 0.1, "seed": n}, error=error) for n, error in enumerate(errors, 1)]
    rows = WandbOnlooker(Server(GRID, runs), stalled_after=600).rows()
    assert [(row.state, row.reason) for row in rows[:2]] == [("cut off", errors[0]), ("failed", errors[1])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected sweep files, or --wandb"),
        (["demo", "--wandb", "a/b/c", "--missing"], "and not both"),
        (["demo", "--requeue"], "--requeue goes with --wandb"),
        (["--wandb", "a/b/c"], "needs --missing"),
        (["--wandb", "a/b", "--missing"], "--wandb is 'a/b', expected ENTITY/PROJECT/SWEEP"),
        (["--wandb", "a/b/c", "--requeue", "--by", "seed"], "--by goes with sweep files"),
        (["--wandb", "a/b/c", "--requeue", "--random-seed", "3"], "--random-seed goes with sweep files"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys):
    assert main(["sweep", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_watching_takes_one_kind_of_place(capsys):
    assert main(["watch", "runs", "--wandb", "a/b/c"]) == 2
    assert "--wandb goes without folders and sweep files" in capsys.readouterr().err


def test_server_that_breaks_off_is_one_line(monkeypatch, capsys):
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    with serve() as server:
        for key, value in {"BASE_URL": server.url, "API_KEY": "a" * 40, "SILENT": "true"}.items():
            monkeypatch.setenv(f"WANDB_{key}", value)
        sweep = server.UpsertSweep(yaml.safe_dump(GRID), "bench")["upsertSweep"]["sweep"]["name"]
        path = f"{ENTITY}/bench/{sweep}"
        assert main(["sweep", "--wandb", path, "--missing"]) == 1
        assert capsys.readouterr().out.splitlines()[0] == "optim.lr=0.1 seed=1: never started"
        monkeypatch.setattr(WandbServer, "Runs", None)  # which it then does not know
        assert main(["sweep", "--wandb", path, "--missing"]) == 2
        assert f"{path}: W&B does not give it: input: unknown operation Runs" in capsys.readouterr().err
        monkeypatch.setattr(WandbServer, "GetSweep", lambda *_, **__: {"project": None})
        assert main(["sweep", "--wandb", path, "--requeue"]) == 2
        assert f"{path}: W&B does not give it" in capsys.readouterr().err.splitlines()[-1]
    wandb_package.teardown()
