"""Every figure in the prose of README.md and of results/ has a source, and every other table is made from records."""

import shlex
import shutil
from pathlib import Path

import pytest
from figures_in_text import NO_RESULT, RESULTS, ROOT, SOURCED, prose, unexplained

from dk_bench.cli import main

TEXTS = sorted({*SOURCED, *(path.relative_to(ROOT).as_posix() for path in RESULTS.rglob("README.md"))})


@pytest.mark.parametrize("name", TEXTS)
def test_every_figure_has_a_source(name):
    text = prose(ROOT / name)
    sourced = SOURCED.get(name, list)()
    absent = [phrase for phrase in sourced if phrase not in text]
    assert absent == [], f"{name}: not what the records say"
    assert [phrase for phrase in NO_RESULT.get(name, []) if phrase not in text] == [], "no longer in the text"
    assert unexplained(text, sourced, NO_RESULT.get(name, [])) == [], f"{name}: see tests/cases/figures_in_text.py"


def test_figures_without_a_source_are_found():
    text = "DK gains +1.8 ± 0.2 points (n=3) over 3x3 at scope 4, in 12 epochs at 96 pixels: 77.4 % at 210 images/s"
    assert len(unexplained(text, [], [])) == 5
    assert unexplained(text, ["+1.8 ± 0.2 points (n=3)", ": 77.4 % at 210 images/s"], []) == []


def test_every_other_table_is_made_again(tmp_path, monkeypatch):
    """What `make tables` does not write from records and studies' files is prose, and no Markdown file is neither."""
    shutil.copytree(RESULTS, tmp_path / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    made = [path for path in Path("results").rglob("*.md") if path.name != "README.md"]
    for path in made:
        path.unlink()
    recipe = (ROOT / "Makefile").read_text().partition("\ntables:")[2].partition("\n\n")[0]
    commands = [line.partition("$(BIN)/dk-bench ")[2] for line in recipe.splitlines() if "$(BIN)/dk-bench " in line]
    assert len(commands) >= 3
    for command in commands:
        if "docs/cluster.md" in command:  # which tests/plan compares
            continue
        assert main(arguments(command)) == 0
    for path in made:
        assert path.read_bytes() == (ROOT / path).read_bytes(), f"{path}: run `make tables`"


def arguments(command: str) -> list[str]:
    """Of a line of the Makefile, with its wildcards."""
    found: list[str] = []
    for part in command.replace("$(wildcard ", "\0").replace(")", "\0").split("\0"):
        words = shlex.split(part)
        found += [str(path) for word in words for path in sorted(Path().glob(word))] if "*" in part else words
    return found
