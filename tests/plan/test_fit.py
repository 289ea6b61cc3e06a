"""Trials of a sweep's cells, what follows from them for whole runs, and plans beside the runs that they were of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dk_bench.classification.outlining import outline_of
from dk_bench.cli import main
from dk_bench.config import Config, OptimConfig
from dk_bench.errors import UserError
from dk_bench.plan.comparing import compare
from dk_bench.plan.fitting import fit_of, wall_seconds
from dk_bench.plan.listed import list_cells
from dk_bench.plan.trials import sweep_seconds, with_decoding
from dk_bench.runs.record import new_record, write_record
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.job import task_in
from dk_bench.sweep.listing import make_jobs

TINY = {
    "model.name": "test_resnetdw",
    "data.procedural.train_images": 64,
    "data.procedural.val_images": 40,
    "data.procedural.test_images": 20,
    "data.size": 32,
    "data.batch_size": 8,
    "optim.epochs": 5,
    "logger": "none",
}


def events_of(begin: float, *, steps: int, first: float, step: float, evaluated: int, rest: float) -> list:
    """Returns what an epoch leaves: its first step takes ``first``, others ``step``, batches of evaluation 0.5 each,
    0.25 before and after them, then ``rest`` until its end."""
    now = begin + first
    events = [("epoch", begin), ("step", now)]
    events += [("step", now := now + step) for _ in range(steps - 1)]
    events.append(("evaluation", now := now + 0.25))
    events += [("evaluated", now := now + 0.5) for _ in range(evaluated)]
    return [*events, ("evaluation end", now + 0.25), (None, now + 0.25 + rest)]


def trial(steps: int = 10) -> dict:
    """Returns what a trial of three epochs writes: begun at 100, of which the first epoch takes 7 longer."""
    events, now = [], 100.0
    for first in (9.0, 2.0, 2.0):
        *own, (_, now) = events_of(now, steps=steps, first=first, step=1.0, evaluated=4, rest=1.5)
        events += own
    events += [("trained", now), ("test", now + 1), ("tested", now + 2), ("tested", now + 3), ("test end", now + 3.5)]
    batches = {"step": 100, "evaluated": 8, "tested": [12]}
    return {
        "events": events,
        "batches": batches,
        "images": {"train": 800, "val": 64},
        "recorded": [95.0, now + 4],
        "memory": None,
    }


def test_a_whole_run_is_the_sum_of_its_parts():
    """By hand: an epoch of 100 steps takes 2 + 99 + 1.5, an evaluation of 8 batches 0.5 + 8 x 0.5."""
    seen = trial()
    trained = next(at for what, at in seen["events"] if what == "trained")
    fit = fit_of(seen, 90.0, trained + 6)
    assert (fit.step, fit.evaluated, fit.start, fit.once) == pytest.approx((1.0, 0.5, 10.0, 7.0))
    assert fit.epoch + 100 * fit.step == pytest.approx(2 + 99 + 1.5)
    assert fit.evaluation + 8 * fit.evaluated == pytest.approx(0.5 + 8 * 0.5)
    assert fit.tests == pytest.approx(2.5 + 10 * 1.0)  # two batches were tried, ten follow
    assert fit.finish == pytest.approx(6 - 2.5)
    whole = 10 + 7 + 5 * (102.5 + 4.5) + 12.5 + 3.5
    outline = outline_of(Config(optim=OptimConfig(epochs=5, warmup_epochs=0)))
    assert fit.seconds(outline) == pytest.approx(whole)
    iterations = replace(outline, iterations=700)  # in as many epochs
    assert fit.seconds(iterations) == pytest.approx(whole + 200 * 1.0)
    assert (fit.before, fit.after) == pytest.approx((5.0, 2.0))


def test_epochs_of_one_step_are_told_too():
    seen = trial(steps=1)
    seen["batches"]["step"] = 1
    fit = fit_of(seen, 90.0, seen["events"][-1][1] + 1)
    assert fit.epoch + fit.steps * fit.step == pytest.approx(2 + 1.5)


@pytest.mark.parametrize(("runs", "workers", "seconds"), [([3, 3, 3], 1, 9), ([3, 3, 3], 2, 6), ([5, 1, 1, 1], 2, 5)])
def test_runs_take_turns(runs, workers, seconds):
    assert wall_seconds(runs, workers) == seconds


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A plan that was measured here, of a sweep of one tiny cell at two seeds, and its sweep file."""
    folder = tmp_path_factory.mktemp("fitted")
    parameters = {key: {"value": value} for key, value in TINY.items()}
    parameters |= {"seed": {"values": [0, 1]}, "output": {"value": str(folder / "runs")}}
    command = ["dk-bench", "train", "demo", "${args_no_hyphens}"]
    sweep = folder / "tiny.yaml"
    sweep.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    argv = ["plan", str(sweep), "--fit", "--steps", "3", "--workers", "1", "--output", str(folder / "plan.json")]
    assert main(argv) == 0
    return folder


def test_a_trial_measures_a_run_and_leaves_nothing(fitted):
    plan = json.loads((fitted / "plan.json").read_text())
    (cell,) = plan["cells"]
    fit = cell["fit"]
    assert (fit["steps"], fit["batches"], fit["images"]) == (8, 5, {"train": 64, "val": 40})
    assert all(fit[part] > 0 for part in ("start", "step", "epoch", "evaluated", "tests", "finish"))
    assert cell["rate_source"] == "measured here" and cell["train_rate"] == pytest.approx(8 / fit["step"])
    whole = 3600 * cell["run_hours"]
    assert whole > fit["start"] + 5 * 8 * fit["step"]
    assert plan["wall_seconds"] == pytest.approx(2 * whole)
    assert plan["recorded_seconds"] == pytest.approx(2 * whole - fit["before"] - fit["after"])
    assert sorted(path.name for path in fitted.iterdir()) == ["plan.json", "tiny.yaml"]


def write_runs(fitted: Path, folder: Path, *, status: str = "finished", tries: int = 1) -> dict:
    """Leaves the records of the plan's two runs, a minute and two minutes long, one after the other."""
    spans = (("10:00:00", "10:01:00"), ("10:01:30", "10:03:30"))
    for job, (began, ended) in zip(make_jobs(read_sweep(fitted / "tiny.yaml"), None), spans, strict=True):
        task = task_in(job.argv)
        model, data = {"name": "test_resnetdw", "spec": None}, {"name": "procedural", "classes": 10}
        record = new_record(name="demo", config=task.values, model=model, data=data, seed=task.run.seed)
        record.started, record.ended = (f"2026-01-01T{at}+00:00" for at in (began, ended))
        record.status = status
        record.attempts *= tries
        write_record(record, folder / f"run-{task.run.seed}" / "record.json")
    return json.loads((fitted / "plan.json").read_text())


def test_a_check_compares_seconds_by_cell_and_in_all(fitted, tmp_path, capsys):
    plan = write_runs(fitted, tmp_path / "runs")
    argv = ["plan", str(fitted / "plan.json"), "--check", str(tmp_path / "runs"), "--output", str(tmp_path / "it.json")]
    assert main(argv) == 0
    record = json.loads((tmp_path / "it.json").read_text())
    (cell,) = record["cells"]
    fit = plan["cells"][0]["fit"]
    assert cell["measured"] == 90 and record["total"]["measured"] == 210
    assert cell["predicted"] == pytest.approx(3600 * plan["cells"][0]["run_hours"] - fit["before"] - fit["after"])
    assert record["total"]["predicted"] == plan["recorded_seconds"]
    assert cell["ratio"] == cell["predicted"] / 90
    page = tmp_path / "plan.md"
    assert main(["plan", "--tables-from", str(tmp_path / "it.json"), "--output", str(page)]) == 0
    assert "| all runs | 2 |" in page.read_text() and "| 1.50 min |" in page.read_text()
    capsys.readouterr()


def test_a_check_refuses_what_it_cannot_compare(fitted, tmp_path, capsys):
    plan = write_runs(fitted, tmp_path / "failed", status="failed")
    with pytest.raises(UserError, match="is failed, expected finished ones"):
        compare(plan, tmp_path / "failed")
    write_runs(fitted, tmp_path / "twice", tries=2)
    with pytest.raises(UserError, match="took several attempts"):
        compare(plan, tmp_path / "twice")
    (tmp_path / "failed/run-1/record.json").unlink()
    with pytest.raises(UserError, match="1 runs, the plan is of 2"):
        compare(plan, tmp_path / "failed")
    cases = {
        (str(fitted / "tiny.yaml"), "--check", str(tmp_path)): "tiny.yaml: is no JSON",
        (str(fitted / "plan.json"), "--check", str(tmp_path / "nothing")): "no such folder",
        ("--tables-from", str(fitted / "plan.json"), "--output", str(tmp_path / "x.md")): "is no plan check",
        (str(fitted / "tiny.yaml"), "--fit", "--gpu", "H100"): "--gpu: does not go with --fit",
        (): "expected a sweep file",
    }
    for argv, expected in cases.items():
        assert main(["plan", *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def test_a_trial_that_fails_says_why(tmp_path, capsys):
    parameters = {"model.name": {"value": "test_resnetdw"}, "data.batch_size": {"value": 5000}}
    sweep = tmp_path / "bad.yaml"
    command = ["dk-bench", "train", "demo", "${args_no_hyphens}"]
    sweep.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    assert main(["plan", str(sweep), "--fit", "--workers", "1"]) == 2
    assert "the trial of bad: bad failed" in (said := capsys.readouterr().err) and "5000" in said


def test_the_first_runs_wait_while_one_of_them_decodes(fitted):
    """Two at a time, of three runs of 100 s: 10 s of decoding come before the first two."""
    (cell,) = list_cells([fitted / "tiny.yaml"])
    cell.jobs, cell.turns = [*cell.jobs, cell.jobs[0]], [0, 1, 2]
    seen = trial()
    fit = fit_of(seen, 90.0, seen["events"][-1][1] + 1)
    (told,) = with_decoding([cell], [fit], cell.task.run.output, 10.0, 2)
    assert (told.decoding, told.waiting) == (10.0, 2)
    whole = fit.seconds(cell.task.outline())
    assert sweep_seconds([cell], [told], 2) == pytest.approx(2 * whole + 10)
    assert with_decoding([cell], [fit], "elsewhere", 10.0, 2) == [fit]
