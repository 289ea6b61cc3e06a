"""The paper's figures, read from ``paper.yaml`` beside this file and checked."""

from functools import cache
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError, located
from dk_bench.models import PAPER_MODELS, KernelSpec
from dk_bench.reading.yaml_words import check_keys, read_as_written

PAPER_FILE = Path(__file__).with_name("paper.yaml")  # package data, so that it is there however one installs

BACKBONES = {"resnet50": "ResNet-50", "resnet50dw": "ResNet-50-DW", "mobilenetv2_100": "MobileNet-V2"}  # by timm's name

# What names a row, and the figures a row may hold; the first figure is the one the table is about.
CLASSIFICATION = ("top1", "params", "flops")
DETECTION = ("map", "map_s", "map_m", "map_l")
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "table1": (("backbone", "pw", "conv3x3"), CLASSIFICATION),
    "table2": (("backbone", "with", "conv3x3"), CLASSIFICATION),
    "table3": (("backbone", "pw", "conv3x3"), DETECTION),
    "table4": (("backbone", "with", "conv3x3"), DETECTION),
}


@cache
def load_paper(path: str | Path = PAPER_FILE) -> dict[str, list[dict[str, Any]]]:
    """Returns the tables by name (``table1`` to ``table4``), each a list of rows in the paper's order; read once.

    Units: top1 and map in percent, params in millions, flops in 10^9 multiply-adds. Raises UserError that names file,
    table and row for anything missing, unknown, not a number or there twice.
    """
    content = read_as_written(path, "figures of the paper")
    with located(path):
        if not isinstance(content, dict) or "source" not in content:
            raise UserError("expected the tables and their source")
        for table, (keys, figures) in TABLES.items():
            if not isinstance(content.get(table), list):
                raise UserError(f"{table} is not a list of rows")
            kinds, seen = dict.fromkeys(keys, str) | dict.fromkeys(figures, int | float), set()
            for number, row in enumerate(content[table], start=1):
                with located(f"{table}, row {number}"):
                    check_keys(row, kinds)
                    if row_name(row) in seen:
                        raise UserError("there twice")
                seen.add(row_name(row))
    return {table: content[table] for table in TABLES}


def row_name(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns what tells a row from the others of its table: backbone, 1x1, 3x3, what it is combined with."""
    return row["backbone"], row.get("pw", "rigid"), row["conv3x3"], row.get("with", "")


def paper_row(backbone: str, spec: KernelSpec) -> tuple[str, ...]:
    """Returns the name, as `row_name`, of the row that the paper would have for a base of its own, deformed so."""
    words = spec.words
    return backbone, words.pw, words.conv3x3, words.combined


@cache
def paper_models() -> dict[tuple[str, ...], str]:
    """Returns the models that are rows of the paper's tables, by the rows' names."""
    return {paper_row(BACKBONES[model.base], model.spec): model.name for model in PAPER_MODELS.values()}


def paper_rows(number: int) -> dict[str, dict[str, Any]]:
    """Returns the rows of one of the paper's tables by the models that they are of, in its order."""
    return {paper_models()[row_name(row)]: row for row in load_paper()[f"table{number}"]}


def figures_of_model(model: str) -> dict[str, float]:
    """Returns all that the paper's tables print of a model; nothing of one that is not in them."""
    return next((paper_figures().get(row, {}) for row, name in paper_models().items() if name == model), {})


@cache
def paper_figures() -> dict[tuple[str, ...], dict[str, float]]:
    """Returns the paper's figures by names of rows, which may stand in tables of classification and of detection."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for table, rows in load_paper().items():
        for row in rows:
            found.setdefault(row_name(row), {}).update({key: row[key] for key in TABLES[table][1]})
    return found
