"""Which cells a sweep at W&B's server has, and how each stands; without a server but where one must not answer."""

import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import wandb as wandb_package
import yaml
from wandb_server import ENTITY, WandbServer, grid_points, serve

from dk_bench.cli import main
from dk_bench.runs.wandb_server import RunAtWandb
from dk_bench.sweep.wandb_cells import list_cells
from dk_bench.sweep.wandb_requeue import sort_out

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

    def runs(self):
        return self.handed


def run(name, state, config, *, minutes=0.0, **summary):
    then = datetime.now(timezone.utc) - timedelta(minutes=minutes)
    return RunAtWandb(name, state, config, summary, then, then, SimpleNamespace())


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


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_cells_of_another_method_are_those_that_were_handed_out(method):
    server = Server(GRID | {"method": method, "parameters": {"optim.lr": {"min": 0.0, "max": 1.0}}})
    assert states(server) == {}
    server.handed = [run("a", "failed", {"optim.lr": 0.25, "seed": 0}), run("b", "finished", {"optim.lr": 0.5})]
    server.handed.append(run("c", "finished", {"optim.lr": 0.25}))
    assert states(server) == {"optim.lr=0.25": "finished (run c)", "optim.lr=0.5": "finished (run b)"}


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
