"""What stands beside our figures: the paper's and our counts, and what the notes say of their differences."""

import re
import tomllib
from pathlib import Path

import dk_bench.tables
from dk_bench.models import PAPER_MODELS
from dk_bench.tables.classification import ADDED, BASES
from dk_bench.tables.costs import COSTS_FILE, load_costs
from dk_bench.tables.documents import build_documents
from dk_bench.tables.paper import PAPER_FILE, figures_of_model


def test_notes_give_the_differences_to_the_papers_multiply_adds():
    """Every figure of the notes from costs.json and paper.yaml: ours, and the paper's behind it in brackets."""
    costs = load_costs()

    def gmacs(name):
        return costs[name]["macs"] / 1e9, figures_of_model(name)["flops"]

    for base in ("resnet50", "resnet50dw", "mobilenetv2_100"):
        ours, printed = gmacs(base)
        assert f"{abs(ours - printed):.2f} " in BASES and (ours > printed) == (base != "mobilenetv2_100")
    added = [(1, ["_dk", "_dk_s3", "_dk_s5", "_dk_s9"], ""), (1, ["_gdk_pw"], "_gdk"), (2, ["_dcn"], "")]
    for table, suffixes, start in [*added, (2, ["_dcn_dk"], ""), (2, ["_scc"], "")]:
        for base in ("resnet50dw", "mobilenetv2_100"):
            for name in (base + suffix for suffix in suffixes if base + suffix in PAPER_MODELS):
                (ours, printed), (ours_without, printed_without) = gmacs(name), gmacs(base + start)
                ours, printed = ours - ours_without, printed - printed_without
                pattern = rf"{ours:.2f}(?: on [A-Za-z0-9-]+)? \((?:printed: )?{printed:.2f}\)"
                assert re.search(pattern, ADDED[table]), name
    documents = build_documents([])
    assert ADDED[1] in documents["table1"].notes and ADDED[2] in documents["table2"].notes


def test_figures_are_installed_with_the_package():
    root = Path(dk_bench.__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setuptools["package-data"]["dk_bench.tables"]) == sorted([PAPER_FILE.name, COSTS_FILE.name])
    assert PAPER_FILE.parent == COSTS_FILE.parent == Path(dk_bench.tables.__file__).parent
