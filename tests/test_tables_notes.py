"""What stands beside our figures: the paper's and our counts."""

import tomllib
from pathlib import Path

import dk_bench.results
from dk_bench.results.costs import COSTS_FILE
from dk_bench.results.paper import PAPER_FILE


def test_figures_are_installed_with_the_package():
    root = Path(dk_bench.__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setuptools["package-data"]["dk_bench.results"]) == sorted([PAPER_FILE.name, COSTS_FILE.name])
    assert PAPER_FILE.parent == COSTS_FILE.parent == Path(dk_bench.results.__file__).parent
