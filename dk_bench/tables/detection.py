"""The tables of detectors: the paper's tables 3 and 4 with its figures beside ours, and all else by data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dk_bench.models import PAPER_MODELS
from dk_bench.tables.cells import Cell
from dk_bench.tables.columns import (
    CHANCE,
    DIFFERENCE,
    UNJUDGED,
    VERDICT,
    WITHOUT,
    difference,
    difference_of_dk,
    paper_columns,
    paper_differences,
    with_verdicts,
)
from dk_bench.tables.contrasts import Judgement
from dk_bench.tables.paper import load_paper, row_name
from dk_bench.tables.render import Document, Number, Table, Value
from dk_bench.tables.rows import (
    DIRTY,
    GRID,
    OTHER_DATA,
    kernel_words,
    pooled,
    pooling_notes,
    scaled,
    spec_of,
    without_empty,
)
from dk_bench.tables.values import NOT_RUN

PRECISION = {"mAP": "val/mAP", "mAP_S": "val/mAP_s", "mAP_M": "val/mAP_m", "mAP_L": "val/mAP_l"}
OVERLAPS = {"AP50": "val/mAP_50", "AP75": "val/mAP_75"}
OTHER_SETTING = "not Faster R-CNN with FPN, 1x, at 1333 x 800, " + OTHER_DATA

SPREAD = (
    "mAP: COCO's average precision in percent, over IoU 0.5 to 0.95; S, M, L: of objects below 32 x 32 pixels, up to "
    "96 x 96, and above. Mean ± half of the 95 % interval of the mean (Student's t) over n seeds; one seed has no "
    "spread. No figure: no object of that size."
)
SPLITS = (
    "The paper's figures are of COCO test-dev, whose annotations are not public; ours are of val2017: close to each "
    "other, not the same measurement."
)
STARTS = "Every backbone starts from its own weights; all else is the same for the two runs of a difference."
SOURCE = "Not run: no record. Paper: Gao et al., ICLR 2020, arXiv 1910.02940."


def detection_documents(cells: list[Cell]) -> list[Document]:
    """``table3`` and ``table4``, and ``detection`` where there are cells that do not belong there.

    Beside the paper's figures stand its models, on COCO, in Faster R-CNN with FPN and the setting 1x; nothing else.
    """
    comparable = [cell for cell in cells if cell.is_papers_detector and cell.model in PAPER_MODELS]
    others = [cell for cell in cells if cell not in comparable or cell.has_spec]
    bases = {(cell.model, cell.data) for cell in others if cell.has_spec}  # stand in both, for the difference
    others += [cell for cell in comparable if cell not in others and (cell.model, cell.data) in bases]
    comparable = [cell for cell in comparable if not cell.has_spec]
    return [*(_paper_document(number, comparable) for number in (3, 4)), *([_others(others)] if others else [])]


def _paper_document(number: int, cells: list[Cell]) -> Document:
    models = {row_name(model.row): model.name for model in PAPER_MODELS.values() if model.row}
    rows = [(paper, models[row_name(paper)]) for paper in load_paper()[f"table{number}"]]
    subject = {3: "global and local kernels", 4: "with strong baselines"}[number]
    differences = [DIFFERENCE.format("mAP"), *([WITHOUT, UNJUDGED] if number == 4 else []), CHANCE, VERDICT]
    table = _paper_table(number, rows, cells)
    notes = [SPREAD, SPLITS, *differences, STARTS, GRID, DIRTY, *pooling_notes([table]), SOURCE]
    title = f"Table {number}: object detection, {subject}."
    return Document(f"table{number}", title, notes, [table])


def _paper_table(number: int, rows: list[tuple[dict[str, Any], str]], cells: list[Cell]) -> Table:
    keys = [key for key in ("backbone", "with", "pw", "conv3x3") if key in rows[0][0]]
    names = {"backbone": "backbone", "with": "with", "pw": "1x1", "conv3x3": "3x3"}
    columns = [names[key] for key in keys]
    for shown in PRECISION:
        columns += [f"{shown}, paper", shown]
    of_dk = number == 4
    columns += [*paper_columns(of_dk, True), "epochs", "pooled", "setting"]
    lines: list[list[Value | Judgement]] = []
    for row, model in rows:
        for cell in [c for c in cells if c.model == model] or [None]:
            line = [*(row[key] for key in keys if key != "conv3x3"), kernel_words(spec_of(model, cell))[1]]
            for shown, metric in PRECISION.items():
                line += [Number(row[shown.lower()]), cell.final(metric) if cell else NOT_RUN]
            line += paper_differences(model, cell, cells, "val/mAP", "map", of_dk=of_dk, with_paper=True)
            line += [Number(cell and cell.epochs(), 0), pooled(cell, "val/mAP"), cell.label if cell else ""]
            lines.append(line)
    columns, lines, family = with_verdicts(columns, lines, ["Δ DK" if of_dk else "Δ rigid"])
    return Table("COCO, Faster R-CNN with FPN, 1x", *without_empty(columns, lines), family)


def _others(cells: list[Cell]) -> Document:
    """Returns one table a data set, and one for COCO in other settings."""
    tables = []
    for data in sorted({cell.data for cell in cells}):
        why = OTHER_SETTING if data.is_coco else OTHER_DATA
        tables.append(_models_table(f"{data}: {why}", [cell for cell in cells if cell.data == data]))
    title = "Object detection on other data, or in other settings."
    counting = "#P: parameters of the whole detector, our own count."
    notes = [SPREAD, DIFFERENCE.format("mAP"), WITHOUT, CHANCE, VERDICT, GRID, DIRTY, *pooling_notes(tables), counting]
    return Document("detection", title, notes, tables)


def _models_table(heading: str, cells: list[Cell]) -> Table:
    metrics = {"mAP": PRECISION["mAP"], **OVERLAPS, **{k: v for k, v in PRECISION.items() if k != "mAP"}}
    columns = ["detector", "backbone", "1x1", "3x3", "with", "mAP", "Δ rigid", "Δ DK", *list(metrics)[1:], "#P (k)"]
    columns += ["epochs", "pooled", "setting"]
    lines: list[list[Value | Judgement]] = []
    for cell in cells:
        count: Callable[[str], Any] = cell.cost
        figures = [cell.final(metric) for metric in metrics.values()]
        line = [cell.runs[0].model.get("detector") or "", cell.model]
        line += [*kernel_words(spec_of(cell.model, cell)), figures[0]]
        line += [find(cell.model, cell, cells, "val/mAP") for find in (difference, difference_of_dk)]
        line += [*figures[1:], scaled(count("params"), 1e3, 1)]
        lines.append([*line, Number(cell.epochs(), 0), pooled(cell, "val/mAP"), cell.label])
    columns, lines, family = with_verdicts(columns, lines, ("Δ rigid", "Δ DK"))
    return Table(heading, *without_empty(columns, lines), family)
