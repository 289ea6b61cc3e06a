"""The code in README.md and docs/: every block runs, or a table below says why it does not.

Blocks run page by page in the order in which they stand, in a folder with the repository's files and a few tiny runs
and images by the names that pages use; ``...`` in a path is a run's folder there. bash reads the commands of the shell;
those of dk-bench then run on tiny data (`SMALL`). What the pages of `RECIPES` have is run by tests/test_recipes.py.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shutil
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_files import pack, picture, splits
from packaging.requirements import Requirement
from shell_blocks import calls_of

from dk_bench import tasks
from dk_bench.cli import COMMANDS, main
from dk_bench.config import Config, load_config
from dk_bench.registry import MODELS
from dk_bench.runs.record import find_records, read_record, write_record

ROOT = Path(__file__).parents[1]
PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))]
RECIPES = ("docs/extending.md", "docs/extending_operator.md")
SHELL = ("", "bash", "sh", "shell")
# Commands and blocks that only are read: (page, how it begins) -> why. Commands are parsed all the same, and so is the
# configuration of a run.
NOT_RUN = {
    ("docs/data.md", "dk-bench train configs/imagenet/resnet50dw_dk.yaml data.reader=wds/"): "reads ImageNet's shards",
    ("docs/deform.md", "dk-bench train configs/pretrained.yaml"): "takes photographs and unpacked weights",
    ("docs/detection.md", "dk-bench train configs/det/faster_rcnn_resnet50dw_fpn_1x.py"): "trains on COCO's images",
    ("docs/offsets.md", "dk-bench erf runs/e1"): "takes the five models of an ablation of an hour",
    ("docs/offsets.md", "dk-bench dynamics runs/e1"): "takes the five models of an ablation of an hour",
    ("docs/sweeps.md", "dk-bench sweep --wandb ENTITY/PROJECT/SWEEP --missing"): "asks W&B's server",
    ("docs/sweeps.md", "dk-bench sweep --wandb ENTITY/PROJECT/SWEEP --requeue"): "asks W&B's server",
    ("docs/sweeps.md", "dk-bench watch --wandb ENTITY/PROJECT/SWEEP"): "asks W&B's server",
    ("docs/sweeps.md", "dk-bench tables --wandb ENTITY/PROJECT/SWEEP"): "asks W&B's server",
    ("docs/plan.md", "dk-bench plan sweeps/demo.yaml --fit"): "tries the sweep's cells for a minute",
    ("docs/plan.md", "dk-bench plan plan.json --check"): "takes that plan",
    ("docs/plan.md", "dk-bench plan --tables-from check.json"): "takes that check",
    ("docs/trained.md", "dk-bench export runs/demo/RUN --to exported --format timm onnx --push"): "pushes to a hub",
    ("docs/using.md", "dk-bench bench ops"): "times operators for minutes",
}
TINY = (
    *("data.size=32", "data.batch_size=4", "data.workers=0", "data.crop_pct=1"),
    *("data.procedural.train_images=10", "data.procedural.val_images=40", "optim.epochs=1", "optim.warmup_epochs=0"),
    *("optim.warmup_lr=0", "wandb.mode=disabled"),
)
TINY_DETECTION = (
    *(
        f"{split}_dataloader.{setting}"
        for split in ("train", "val", "test")
        for setting in (
            *("num_workers=0", "persistent_workers=false", "dataset.scenes.train_images=4"),
            *("dataset.scenes.val_images=2", "dataset.scenes.size=64"),
        )
    ),
    *("train_cfg.max_epochs=1", "train_cfg.val_interval=1", "data_root=data/tiny_scenes", "wandb.mode=disabled"),
)
# (page, text, what stands in for it) and why.
CHANGED = {
    ("README.md", "pretrained=True", "pretrained=False"): "downloads weights",
    (
        "docs/trainer.md",
        '"model.name=test_resnetdw_dk"]',
        f'"model.name=test_resnetdw_dk", *{TINY}]',
    ): "trains for minutes",
    ("docs/trained.md", "resnet50dw_dk", "test_resnetdw_dk"): "the run that the page goes on with is a tiny one",
}
# Programs that are not ours and not there, or would change this machine: bash reads their lines.
NOT_OURS = {
    "docker": "see tests/test_forks.py",
    "git": "",
    "scontrol": "SLURM's",
    "sbatch": "SLURM's",
    "srun": "SLURM's; see tests/processes/test_slurm_scripts.py",
    "tensorboard": "a server",
    "torchrun": "torch's; see tests/processes/test_torchrun.py",
    "wandb": "W&B's client, see tests/sweep/test_wandb_sweep.py",
}
# What makes a command take seconds: its last arguments.
SMALL = {
    "dynamics": ["--objects", "40"],
    "erf": ["--count", "2"],
    "models": ["--filter", "test_*"],
    "sweep": ["--dry-run"],
    "watch": ["--once"],
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page without the indent of a list's item."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^( *)(`{3,})\{? *\.?([\w+-]*)[^\n`]*\n(.*?)^ *\2$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: m.start()].count("\n") + 2, m[3], textwrap.dedent(m[4])) for m in found]


def test_every_block_is_found():
    fences = sum(len(re.findall(r"^ *```", (ROOT / page).read_text("utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * sum(len(blocks_of(page)) for page in PAGES) > 0


def test_calls_side_by_side_are_noted_whole(tmp_path):
    found = calls_of('for i in {1..40}; do wandb agent "of $i" & done; wait', tmp_path, NOT_OURS)
    assert sorted(found) == sorted(["wandb", "agent", f"of {i}"] for i in range(1, 41))
    assert calls_of("git commit -m 'a\n\nb'", tmp_path, NOT_OURS) == [["git", "commit", "-m", "a\n\nb"]]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """A folder as `place` gives it to each page."""
    place = tmp_path_factory.mktemp("place")
    for name in ("configs", "sweeps", "results", "tools", "docs", "README.md", "Makefile", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    splits(place / "data" / "imagenet")
    picture(place / "cat.jpg", size=(160, 120))
    for number in range(3):
        picture(place / "photos" / f"{number}.jpg", number, (40, 32))
    pack(place / "photos").rename(place / "more.tar")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for model in ("test_resnetdw", "test_resnetdw_dk"):
            for seed in (0, 1):
                run = ("configs/demo.yaml", f"model.name={model}", f"seed={seed}", "output=runs/demo", *TINY)
                assert main(["train", *run]) == 0
        assert main(["train", "configs/det/tiny_procedural.py", "output=runs/det", *TINY_DETECTION]) == 0
    for path in find_records([place / "runs" / "demo"]):  # so tiny a run guesses: a plan needs figures that differ
        record = read_record(path)
        record.metrics["final"]["val/top1"] += record.seed * len(record.model["name"])
        write_record(record, path)
    (detector,), (run,) = (place / "runs" / "det").glob("*-s0"), runs_of(place, "test_resnetdw_dk")
    for link, folder in (("...", run), (run.name, run), ("demo/RUN", run), ("det/...", detector)):
        (place / "runs" / link).symlink_to(folder.relative_to((place / "runs" / link).parent))
    shutil.copy(place / "runs" / "..." / "last.ckpt", place / "last.ckpt")
    return place


@pytest.fixture
def place(furnished, tmp_path, monkeypatch):
    """The folder in which the documentation's commands run, the current one; no page sees what another one wrote."""
    shutil.copytree(furnished, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_of(place: Path, model: str) -> list[Path]:
    """The folders of a model's runs of seed 0."""
    records = {path: read_record(path) for path in find_records([place / "runs" / "demo"])}
    return [path.parent for path, record in records.items() if (record.model["name"], record.seed) == (model, 0)]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECIPES and blocks_of(page)])
def test_blocks_run(page, place):
    names: dict[str, Any] = {"__name__": "__main__"}
    read: list[tuple[str, str]] = []  # of the keys of NOT_RUN
    for block in blocks_of(page):
        text = changed(block)
        if block.language == "python":
            exec(compile("\n" * block.line + text, str(ROOT / page), "exec"), names)
        elif block.language in SHELL:
            read += [key for call in calls_of(text, place, [*CHECKS, *NOT_OURS]) for key in follow(page, call)]
        else:
            OTHERS[block.language](text)
    assert sorted(read) == sorted(key for key in NOT_RUN if key[0] == page)
    if page in AFTER:
        AFTER[page](names)


def changed(block: Block) -> str:
    """A block's text with what stands in for parts of it."""
    text = block.text
    for page, part, other in CHANGED:
        if page == block.page:
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", other, text)
    return text


def follow(page: str, call: list[str]) -> list[tuple[str, str]]:
    """Runs a call of the shell, or checks what there is to check; the keys of NOT_RUN that kept it from running."""
    name, *arguments = call
    if name in NOT_OURS:
        if "dk-bench" in arguments:  # which it is to start
            check_dk_bench(arguments[arguments.index("dk-bench") + 1 :], is_only_read=True)
        return []
    keys = [key for key in NOT_RUN if key[0] == page and " ".join(call).startswith(key[1])]
    CHECKS[name](arguments, bool(keys))
    return keys


def check_dk_bench(arguments: list[str], is_only_read: bool) -> None:
    name, *rest = arguments
    assert name in COMMANDS, name
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dk_bench.cli.{name}").add_arguments(parser)
    parsed = parser.parse_args(rest)
    if name == "train":
        assert tasks.load(parsed.config, parsed.overrides)
    if name in ("train", "picture"):
        rest += TINY_DETECTION if parsed.config.endswith(".py") else TINY
    if not is_only_read:
        assert main([name, *rest, *SMALL.get(name, ())]) == 0, arguments


def check_make(arguments: list[str], _: bool) -> None:
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets), arguments


def check_pip(arguments: list[str], _: bool) -> None:
    """Names of extras are those of pyproject.toml; versions allow those of constraints.txt, one alone is of its own."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    command, *rest = arguments
    assert command in ("install", "wheel", "download")
    for word in rest:
        if word.startswith(("-", ".")) or word.endswith(".whl"):
            assert set(re.findall(r"[\w-]+", word.partition("[")[2])) <= extras, word
            continue
        asked = Requirement(word)
        if asked.name.replace("-", "_") == "dk_bench":
            assert asked.extras <= extras, word
        if "==" in word or asked.name in pins:
            assert asked.specifier.contains(pins[asked.name]), f"{word}: not as constraints.txt has it"


def check_python(arguments: list[str], _: bool) -> None:
    first, *rest = arguments
    if first == "-m":
        assert importlib.util.find_spec(rest[0]), rest[0]
    elif first == "-c":
        compile(rest[0], "-c", "exec")
    else:
        ast.parse((ROOT / first).read_text())


def check_yaml(text: str) -> None:
    """A sweep's runs are those of commands that can be read, and a configuration is one."""
    content = yaml.safe_load(text)
    if "parameters" in content:
        Path("block.yaml").write_text(text)
        assert main(["sweep", "block.yaml", "--dry-run"]) == 0
    elif content.keys() & Config.__dataclass_fields__.keys():
        Path("block.yaml").write_text(text)
        load_config("block.yaml")


def check_json(text: str) -> None:
    """JSON lines, or one value."""
    for line in text.splitlines() if text.startswith(('{"', "[")) else [text]:
        json.loads(line)


def check_words(text: str) -> None:
    """No command hides in a block that is said to be no code."""
    assert not re.search(rf"^({'|'.join((*CHECKS, *NOT_OURS))})\b", text, re.MULTILINE), text


def check_readme(names: dict[str, Any]) -> None:
    assert sum("offset" in part for part, _ in names["model"].named_parameters()) > 10
    assert MODELS.get(names["backbone"]["type"]) is not None


CHECKS = {"dk-bench": check_dk_bench, "make": check_make, "pip": check_pip, "python": check_python}
OTHERS = {"yaml": check_yaml, "json": check_json, "toml": tomllib.loads, "text": check_words}
AFTER = {"README.md": check_readme}


@pytest.mark.parametrize("page", RECIPES)
def test_recipes_are_run_whole(page):
    """Every block is in a section and language that tests/test_recipes.py takes: all blocks of both, or it fails."""
    tree = ast.parse((ROOT / "tests" / "test_recipes.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "blocks_of"]
    taken = {tuple(ast.literal_eval(argument) for argument in call.args) for call in calls}
    lines, blocks = (ROOT / page).read_text(encoding="utf-8").splitlines(), blocks_of(page)
    for block in blocks:
        titles = [line for line in lines[: block.line] if re.match(r"##? ", line)]
        assert (titles[-1].lstrip("# "), block.language) in taken, f"{page}:{block.line}"
    assert blocks


def test_what_is_left_out_is_there():
    """Each change is of something that stands on its page; what is not run is checked where the page is."""
    assert {page for page, _ in NOT_RUN} <= set(PAGES)
    for page, part, _ in CHANGED:
        assert any(part in block.text for block in blocks_of(page)), (page, part)
