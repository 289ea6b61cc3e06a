"""Finds the commit that fixed an experiment's plan before its first run, and keeps it for where there is no git."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dk_bench.claims.findings import Family
from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.runs.record import RunRecord

PLAN = Path("docs/experiments.md")
KEPT = "plan.json"  # beside the tables, so that they come out the same from an archive of the sources


def plan_commits(families: list[Family], plan: Path) -> dict[str, str]:
    """Returns, by experiment, the commit that last changed the plan as the code of its first run had it; where git does
    not know that code, the last one before the run began.

    An experiment without a run is left out. Raises UserError where git does not know the file, so in a clone without
    its history, and where it was committed after the first run began.
    """
    first: dict[str, RunRecord] = {}  # runs, by experiment
    for family in families:
        for run in family.blocks.runs:
            first[family.place.name] = min(run, first.get(family.place.name, run), key=lambda r: r.started)
    commits = {}
    for name, run in first.items():
        if _git(plan, "rev-parse", "--is-shallow-repository") != "false":
            raise UserError(f"--plan {plan}: in no git checkout with its whole history, which would tell its commit")
        last = ("log", "-1", "--format=%H", f"--before={run.started}")
        code = run.git.get("commit")
        commit = code and _git(plan, *last, code, "--", plan.name) or _git(plan, *last, "--", plan.name)
        if not commit:
            raise UserError(
                f"--plan {plan}: no commit of it is older than the first run of {name}, begun {run.started}"
            )
        commits[name] = commit
    return commits


def keep_plan(folder: Path, plan: Path, commits: Mapping[str, str]) -> Path:
    """Writes down the commits in the folder of the tables. Raises OSError where it cannot."""
    content = {"plan": plan.as_posix(), "commits": dict(commits)}
    return write_atomically(folder / KEPT, json.dumps(content, indent=1, sort_keys=True) + "\n")


def kept_plan(folder: Path) -> tuple[str, dict[str, str]]:
    """Returns the plan's file and its commit by experiment, as written down in the folder; no commits where nothing is.
    Raises UserError for a file of another shape."""
    path = folder / KEPT
    if not path.exists():
        return PLAN.as_posix(), {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan, commits = content["plan"], dict(content["commits"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        expected = "the plan and its commits, as `dk-bench claims --plan` writes"
        raise UserError(f"{path}: expected {expected}: {error}") from error
    return str(plan), {str(name): str(commit) for name, commit in commits.items()}


def _git(plan: Path, *words: str) -> str | None:
    """Tells what git prints in the plan's folder; None where it is not there or refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=plan.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
