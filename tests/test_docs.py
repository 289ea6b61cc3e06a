"""What README.md and docs/ name is there: files, modules, links, commands with their options, settings, rooms."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import re
import shlex
import sys
import typing
from pathlib import Path

import pytest

from dk_bench.cli import COMMANDS
from dk_bench.config import Config
from dk_bench.models import MODELS

ROOT = Path(__file__).parents[1]
TEXTS = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
RESULTS = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.glob("results/**/*.md"))}
PATH = re.compile(r"(?<![\w/.:<-])(?:dk_bench|ops|tests|tools|sweeps|configs|docs|results)/[\w./*{},-]*")
DOTTED = re.compile(r"(?<![\w/.-])dk_bench(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
SETTING = re.compile(r"(?<![\w./-])(?:model|data|optim|loss|ema|trainer|wandb)(?:\.\w+)+(?==)")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SOURCES = (".py", ".yaml", ".sh", ".cpp", ".cu", ".h")
MMDETS = ("tools/test.py", "tools/train.py")  # in mmdet's folder
RECIPE = "mine"  # what the recipes of docs/extending*.md make is called so, and is not there

each_text = pytest.mark.parametrize("name", TEXTS)


def code(text: str) -> list[str]:
    """Returns what a text has in backticks or in blocks of code."""
    blocks = [found[2] for found in BLOCK.finditer(text)]
    return blocks + re.findall(r"`([^`]+)`", BLOCK.sub("", text))


def alternatives(path: str) -> list[str]:
    """Returns the paths that braces stand for: two for ``results/{a,b}.md``."""
    found = re.search(r"\{([^{}]*)\}", path)
    if not found:
        return [path]
    return [each for way in found[1].split(",") for each in alternatives(path.replace(found[0], way, 1))]


def is_there(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()


def resolves(dotted: str) -> bool:
    """Tells whether a dotted name is a module, or something in one, or what mmengine's registry calls so."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None or is_registered(dotted)
    return False


def is_registered(dotted: str) -> bool:
    registry = importlib.import_module("dk_bench.registry")
    return registry.MODELS.get(dotted.rpartition(".")[2]) is not None


@pytest.mark.parametrize("name", TEXTS | RESULTS)
def test_paths_exist(name):
    text = (TEXTS | RESULTS)[name].read_text(encoding="utf-8")
    named = {each for found in PATH.findall(LINK.sub("]", text)) for each in alternatives(found.rstrip(".,"))}
    named = {path for path in named if path not in MMDETS and not re.search(rf"{RECIPE}|\.\.\.|\b[A-Z]+/", path)}
    assert [path for path in sorted(named) if not is_there(path)] == []


@each_text
def test_links_lead_somewhere(name):
    for target, heading in LINK.findall(TEXTS[name].read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = TEXTS[name].parent / target if target else TEXTS[name]
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], heading


@each_text
def test_names_in_the_package_exist(name):
    named = set(DOTTED.findall(TEXTS[name].read_text(encoding="utf-8")))
    assert [dotted for dotted in sorted(named) if RECIPE not in dotted and not resolves(dotted)] == []


@each_text
def test_names_in_backticks_are_known(name):
    """Names of functions, settings, variables and files are those of the sources, of the package or of its tests."""
    text = BLOCK.sub("", TEXTS[name].read_text(encoding="utf-8"))
    named = set(re.findall(r"`([A-Za-z_]\w+)(?:\([^`]*\))?`", text))
    assert sorted(named - words_of_sources()) == []


@functools.cache
def words_of_sources() -> set[str]:
    folders = ("dk_bench", "ops", "tests", "tools", "configs", "sweeps")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in SOURCES]
    texts = [path.read_text(encoding="utf-8") for path in (*paths, ROOT / "setup.py", ROOT / "Makefile")]
    return set(re.findall(r"\w+", "\n".join(texts)))


@each_text
def test_commands_and_their_options_exist(name):
    text = TEXTS[name].read_text(encoding="utf-8")
    for command in re.findall(r"dk-bench ([a-z]+)\b([^\n`|]*)", "\n".join(code(text))):
        check_command(*command)
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {found for part in code(text) for found in re.findall(r"^make (\w+)", part, re.MULTILINE)} <= targets


def check_command(name: str, rest: str) -> None:
    """Fails for a command that is not there, or an option that it does not have."""
    if name == RECIPE:
        return
    assert name in COMMANDS, name
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dk_bench.cli.{name}").add_arguments(parser)
    options = {word for word in shlex.split(rest.partition(" #")[0].partition("&&")[0]) if word.startswith("--")}
    assert options <= parser._option_string_actions.keys(), (name, options)


@each_text
def test_settings_exist(name):
    """Settings of classifiers; of mmdet's configurations there is no schema."""
    for setting in SETTING.findall(" ".join(code(TEXTS[name].read_text(encoding="utf-8")))):
        assert is_setting(setting), setting


def is_setting(dotted: str) -> bool:
    first, second, *rest = dotted.split(".")
    if (first, second) in (("model", "backbone"), ("data", "mean")) or RECIPE in rest:
        return True
    hints: typing.Any = Config
    for part in (first, second, *rest):
        if not dataclasses.is_dataclass(hints):
            return hints is not None
        found = typing.get_type_hints(hints)
        if part not in found:
            return False
        hints = found[part]
    return True


def test_readme_is_short_and_lists_the_rooms():
    text = TEXTS["README.md"].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        floors = importlib.import_module("rooms").FLOORS
    finally:
        sys.path.remove(str(ROOT / "tools"))
    listed = text.partition("\n## Folders\n")[2].partition("\ndk_bench/")[2].partition("\nconfigs/")[0]
    rooms = [word for line in listed.splitlines()[1:] for word in re.split(r" {3,}", line.strip())[0].split()]
    assert rooms == [room for room in floors if room != "__main__"], (
        "README.md has the rooms as tools/rooms.py has them"
    )


@pytest.mark.parametrize("face", sorted((ROOT / "dk_bench").rglob("*/__init__.py")), ids=lambda face: face.parent.name)
def test_rooms_say_where_to_begin(face):
    said = " ".join(ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))).split())
    named = re.findall(r"[\w/]+\.(?:py|yaml)\b", said.partition("Begin with ")[2])
    assert named and [name for name in named if not (face.parent / name).exists()] == []


def test_every_text_is_linked_from_the_first_page():
    """README.md has the first page of the site, docs/index.md, and that has all others."""
    first = TEXTS["docs/index.md"].read_text(encoding="utf-8")
    assert [name for name in TEXTS if f"]({name.removeprefix('docs/')})" not in first] == ["README.md", "docs/index.md"]
    assert "](docs/index.md)" in TEXTS["README.md"].read_text(encoding="utf-8")


def test_every_suffix_of_a_model_is_explained():
    table = TEXTS["docs/models.md"].read_text(encoding="utf-8").partition("| suffix |")[2].partition("\n\n")[0]
    explained = set(re.findall(r"`(_\w+)`", table))
    left = {model.suffix.removesuffix("_pw").removesuffix("_lpw") for model in MODELS.values()} - explained
    assert left == {""} and {"_pw", "_lpw"} <= explained
