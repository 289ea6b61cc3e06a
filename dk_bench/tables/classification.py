"""Run records as tables: the paper's four with its figures beside ours, the demo's, and any other model's.

Tables 1 and 2, classification, are made here, 3 and 4 in `dk_bench.tables.detection`. Only finished runs give figures.
Runs on other data than the paper's never stand beside the paper's figures: they get tables of their own, which say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dk_bench.files import write_atomically
from dk_bench.models import PAPER_MODELS
from dk_bench.runs.record import DETECTION, TRAINING, RunRecord
from dk_bench.tables.cells import Cell, gather
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
from dk_bench.tables.costs import Costs
from dk_bench.tables.detection import detection_documents
from dk_bench.tables.paper import load_paper, row_name
from dk_bench.tables.render import FORMATS, Document, Number, Table, Value
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

SURROGATES = re.compile("[\ud800-\udfff]")
DEMO_BASE = "test_resnetdw"
DEMO_MODELS = tuple(DEMO_BASE + suffix for suffix in ("", "_gdk", "_dk_s3", "_dk", "_dk_s5", "_dcn", "_dcn_dk"))

SPREAD = (
    "Top-1 in percent, of the validation images: mean ± half of the 95 % interval of the mean (Student's t) over n "
    "seeds; one seed has no spread."
)
COUNTING = (
    "#P and MACs are our own count, for one image of the size the run used (224 x 224 where nothing ran); MACs are "
    "multiply-adds without those of sampling at offsets, which stand apart. Unknown: the model runs an operator that "
    "has no formula; its record names it."
)
# Figures of costs.json and paper.yaml; the tests compare.
BASES = (
    "GMACs against the paper's, base: ResNet-50 counts 0.23 and ResNet-50-DW 0.20 more than printed (the stride is on "
    "the 3x3 convolution, which costs more); MobileNet-V2 0.01 less."
)
ADDED = {
    1: "GMACs against the paper's, what a row adds to its base: local DK 0.45 on ResNet-50-DW (printed: 0.50) and 0.37 "
    "on MobileNet-V2 (0.42), whatever the scope; global DK on the 1x1 convolutions 0.07 (0.27) and 0.01 (0.03). So "
    "the difference to the paper's figure varies from row to row. We do not know how the paper counts.",
    2: "GMACs against the paper's, what a row adds to its base: DCN 0.25 on ResNet-50-DW (printed: 0.28) and 0.19 on "
    "MobileNet-V2 (0.21), DCN with local DK 0.70 (0.78) and 0.56 (0.62). SCC adds 0.04 (3.31) and 0.02 (1.88): the "
    "paper's figures fit one convolution for each expert; here the experts' kernels are mixed first and convolved with "
    "once, which computes the same and is cheaper.",
}
OTHER_PROTOCOL = "not evaluated as in the paper (centre 224 x 224 of images resized to 256), " + OTHER_DATA


def build_documents(records: Iterable[RunRecord], costs: Costs | None = None) -> dict[str, Document]:
    """Returns every table by name: ``table1`` to ``table4``, ``demo``, ``other`` where there are other models, and
    ``detection`` where there are detectors on other data than COCO.

    ``costs`` gives params, macs and sampling_macs by model name, for rows that have no record on ImageNet.
    """
    records = list(records)
    cells = gather(record for record in records if record.task == TRAINING)  # evaluations are no cells of training
    documents = [_paper_document(number, cells, costs or {}) for number in (1, 2)]
    documents += detection_documents(gather(record for record in records if record.task == DETECTION))
    documents.append(_demo_document(cells))
    others = [cell for cell in cells if not cell.model.startswith(DEMO_BASE)]
    # A paper's model that the configuration deformed stands beside its rigid base.
    bases = {cell.model for cell in others if cell.has_spec}
    others = [cell for cell in others if cell.model in bases or cell.model not in PAPER_MODELS]
    if others:
        documents.append(_models_document("other", "Other models.", others))
    return {document.name: document for document in documents}


def write_documents(documents: Iterable[Document], folder: str | Path) -> list[Path]:
    """Writes each document as Markdown, CSV and LaTeX, atomically. Raises OSError where it cannot."""
    return [
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes the sign for what is no character.
        write_atomically(Path(folder) / f"{document.name}.{suffix}", SURROGATES.sub("\ufffd", render(document)))
        for document in documents
        for suffix, render in FORMATS.items()
    ]


def _paper_document(number: int, cells: list[Cell], costs: Costs) -> Document:
    """Returns a table of the paper: first ImageNet with the paper's figures, then one table for every other data set,
    and for ImageNet at other sizes."""
    models = {row_name(model.row): model.name for model in PAPER_MODELS.values() if model.table == number}
    rows = [(paper, models[row_name(paper)]) for paper in load_paper()[f"table{number}"]]
    cells = [cell for cell in cells if not cell.has_spec]  # those of other tables too: differences are to them
    theirs = [cell for cell in cells if cell.is_papers_protocol]
    tables = [_paper_table(number, "ImageNet", rows, theirs, costs)]
    others = [cell for cell in cells if not cell.is_papers_protocol]
    for data in sorted({cell.data for cell in others if cell.model in models.values()}):
        here = [cell for cell in others if cell.data == data]
        why = OTHER_PROTOCOL if data.is_imagenet else OTHER_DATA
        tables.append(_paper_table(number, f"{data}: {why}", rows, here, None))
    subject = {1: "scope, global and local kernels", 2: "with strong baselines"}[number]
    source = "Not run: no record. Paper: Gao et al., ICLR 2020, arXiv 1910.02940."
    differences = [DIFFERENCE.format("top-1"), *([WITHOUT, UNJUDGED] if number == 2 else []), CHANCE, VERDICT]
    notes = [SPREAD, *differences, GRID, COUNTING, BASES, ADDED[number], DIRTY, *pooling_notes(tables), source]
    return Document(f"table{number}", f"Table {number}: {subject}.", notes, tables)


def _paper_table(
    number: int, heading: str, rows: list[tuple[dict, str]], cells: list[Cell], costs: Costs | None
) -> Table:
    """Returns the paper's rows. ``costs`` is None for other data than the paper's, where its figures are left out."""
    with_paper = costs is not None
    keys = [key for key in ("backbone", "with", "pw", "conv3x3") if key in rows[0][0]]
    names = {"backbone": "backbone", "with": "with", "pw": "1x1", "conv3x3": "3x3"}
    paper = (lambda column: (f"{column}, paper",)) if with_paper else (lambda column: ())
    columns = [*(names[key] for key in keys), *paper("top-1"), "top-1"]
    columns += paper_columns(number == 2, with_paper)
    columns += [*paper("#P (M)"), "#P (M)", *paper("GMACs"), "GMACs", "sampling GMACs", "epochs", "pooled", "setting"]
    lines: list[list[Value | Judgement]] = []
    for row, model in rows:
        for cell in [c for c in cells if c.model == model] or [None]:
            count = cell.cost if cell else (costs or {}).get(model, {}).get
            line = [row[key] for key in keys if key != "conv3x3"]
            line += [kernel_words(spec_of(model, cell))[1], *[Number(row["top1"])] * with_paper]
            line += [cell.final("val/top1") if cell else NOT_RUN]
            line += paper_differences(model, cell, cells, "val/top1", "top1", of_dk=number == 2, with_paper=with_paper)
            line += [Number(row["params"])] * with_paper + [scaled(count("params"), 1e6)]
            line += [Number(row["flops"], 2)] * with_paper + [scaled(count("macs"), 1e9)]
            line += [scaled(count("sampling_macs"), 1e9, 3), Number(cell and cell.epochs(), 0)]
            lines.append([*line, pooled(cell, "val/top1"), cell.label if cell else ""])
    columns, lines, family = with_verdicts(columns, lines, ["Δ DK" if number == 2 else "Δ rigid"])
    return Table(heading, *without_empty(columns, lines), family)


def _demo_document(cells: list[Cell]) -> Document:
    """Returns the demo's grid, always whole, and what else was run of its tiny base; one table a data set."""
    return _models_document(
        "demo",
        "Tiny models: rigid, global and local kernels, alone and with CondConv or deformable convolution.",
        [cell for cell in cells if cell.model.startswith(DEMO_BASE)],
        expected=DEMO_MODELS,
    )


def _models_document(name: str, title: str, cells: list[Cell], expected: tuple[str, ...] = ()) -> Document:
    tables = [
        _models_table(f"{data}: {OTHER_DATA}", [cell for cell in cells if cell.data == data], expected)
        for data in sorted({cell.data for cell in cells})
    ]
    marks = [DIRTY, *pooling_notes(tables)]
    notes = [SPREAD, DIFFERENCE.format("top-1"), WITHOUT, CHANCE, VERDICT, GRID, *marks, COUNTING]
    return Document(name, title, notes, tables or [_models_table("no records yet", [], expected)])


def _models_table(heading: str, cells: list[Cell], expected: tuple[str, ...]) -> Table:
    columns = ["model", "1x1", "3x3", "with", "top-1", "Δ rigid", "Δ DK", "#P (k)", "MMACs", "sampling MMACs"]
    columns += ["epochs", "pooled", "setting"]
    lines: list[list[Value | Judgement]] = []
    for model in dict.fromkeys([*expected, *(cell.model for cell in cells)]):
        for cell in [c for c in cells if c.model == model] or [None]:
            count: Callable[[str], Any] = cell.cost if cell else {}.get
            line = [model, *kernel_words(spec_of(model, cell)), cell.final("val/top1") if cell else NOT_RUN]
            line += [find(model, cell, cells, "val/top1") for find in (difference, difference_of_dk)]
            line += [scaled(count("params"), 1e3, 1)]
            line += [scaled(count("macs"), 1e6), scaled(count("sampling_macs"), 1e6)]
            line += [Number(cell and cell.epochs(), 0), pooled(cell, "val/top1"), cell.label if cell else ""]
            lines.append(line)
    columns, lines, family = with_verdicts(columns, lines, ("Δ rigid", "Δ DK"))
    return Table(heading, *without_empty(columns, lines), family)
