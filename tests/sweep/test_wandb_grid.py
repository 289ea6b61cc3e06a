"""Every sweep file against W&B's own code: its schema, the points of its grid search, the agent's command lines."""

import os
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent
from wandb_server import grid_points, schema_faults

from dk_bench.sweep.grid import read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
# What the files in sweeps/ do not have.
AWKWARD = {
    "program": "train.py",
    "command": ["${env}", "${interpreter}", "${program}", "--of=${envvar:DK_TEST}", "${args_no_hyphens}", "${args}"],
    "method": "grid",
    "parameters": {
        "twice": {"values": [2, 1, 2.0, "1", True]},
        "whole": {"values": [4.0, 1e-5, 1e30, -0.0]},
        "range": {"min": 1, "max": 3, "distribution": "int_uniform"},
        "steps": {"min": 0.0, "max": 1.0, "q": 0.5, "distribution": "q_uniform"},
        "nothing": {"value": None},
        "list": {"values": [[1.0, 2.5], ["a b"]]},
        "Upper": {"value": "é"},
        "nested": {"parameters": {"b": {"values": [1, 0.5]}, "a": {"parameters": {"c": {"value": False}}}}},
    },
}


@pytest.fixture
def awkward(tmp_path):
    path = tmp_path / "awkward.yaml"
    path.write_text(yaml.safe_dump(AWKWARD))
    return path


def wandbs_argv(sweep, point, monkeypatch):
    """The command line that W&B's agent starts for a point."""
    started = []

    class Process:
        def __init__(self, command, **_):
            started.append(command)

    monkeypatch.setattr("wandb.wandb_agent.AgentProcess", Process)
    agent = Agent(api=None, queue=None)
    agent._sweep_command = list(sweep["command"])
    agent._command_run({"run_id": "one", "program": sweep["program"], "args": point})
    return started[0]


def check(path, folder, monkeypatch):
    """Compares with ours and returns the number of points."""
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, str(folder))
    sweep, ours = yaml.safe_load(path.read_text()), read_sweep(path)
    theirs = grid_points(sweep, most=10_000)
    points = ours.points()
    assert [{name: item["value"] for name, item in point.items()} for point in theirs] == points
    for point, their in zip(points, theirs, strict=True):
        assert ours.argv(point) == wandbs_argv(sweep, their, monkeypatch)
    return len(points)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_points_and_command_lines_are_wandbs(path, tmp_path, monkeypatch):
    assert schema_faults(yaml.safe_load(path.read_text())) == []
    assert check(path, tmp_path, monkeypatch) > 1


def test_so_are_those_of_an_awkward_grid(awkward, tmp_path, monkeypatch):
    monkeypatch.setenv("DK_TEST", "outside")
    assert check(awkward, tmp_path, monkeypatch) == 4 * 4 * 3 * 2 * 2 * 2
    assert "--of=outside" in wandbs_argv(AWKWARD, grid_points(AWKWARD)[0], monkeypatch)
    assert os.environ["WANDB_RUN_ID"] == "one"
