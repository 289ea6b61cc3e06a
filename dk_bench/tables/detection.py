"""The tables of detectors: the paper's tables 3 and 4 with its figures beside ours, and all else by data set."""

from dk_bench.models import LARGE_MODELS, PAPER_MODELS
from dk_bench.tables import columns
from dk_bench.tables.cells import Cell
from dk_bench.tables.paper import paper_rows
from dk_bench.tables.rows import rows_of
from dk_bench.tables.table import Column, Document, make_table

MAP = columns.Metric("mAP", "val/mAP", "map")
BY_SIZE = tuple(columns.Metric(f"mAP_{size}", f"val/mAP_{size.lower()}", f"map_{size.lower()}") for size in "SML")
BY_OVERLAP = tuple(columns.Metric(f"AP{overlap}", f"val/mAP_{overlap}") for overlap in (50, 75))
SETTING = "COCO, Faster R-CNN with FPN, 1x"
OTHER_SETTING = "not Faster R-CNN with FPN, 1x, at 1333 x 800, " + columns.OTHER_DATA

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
COUNTING = "#P: parameters of the whole detector, our own count."

BACKBONE = Column("backbone", lambda row: row.model, short=columns.MODEL)
COLUMNS = columns.models_columns(
    [Column("detector", lambda row: row.cell.runs[0].model.get("detector") or "", short=columns.MODEL), BACKBONE],
    MAP,
    [Column("#P (k)", lambda row: row.count("params", 1e3, 1))],
    [*BY_OVERLAP, *BY_SIZE],
)


def detection_documents(cells: list[Cell]) -> list[Document]:
    """Returns ``table3`` and ``table4``, and ``detection`` where there are cells that do not belong there. Beside the
    paper's figures stand its models, on COCO, in Faster R-CNN with FPN and the setting 1x; nothing else. Below table 3
    are, so trained, the large models that it has not."""
    comparable = [cell for cell in cells if cell.is_papers_detector and cell.model in PAPER_MODELS | LARGE_MODELS]
    bases = {(cell.model, cell.data) for cell in cells if cell.has_spec}  # stand in both, for the difference
    others = [cell for cell in cells if cell not in comparable or (cell.model, cell.data) in bases]
    comparable = [cell for cell in comparable if not cell.has_spec]
    return [*(_paper_document(number, comparable) for number in (3, 4)), *([_others(others)] if others else [])]


def _paper_document(number: int, cells: list[Cell]) -> Document:
    by_size = [column for metric in BY_SIZE for column in columns.beside_paper(metric.column(), metric.paper, True)]
    shown = columns.paper_columns(number, MAP, more=by_size)
    tables = [make_table(SETTING, shown, rows_of(paper_rows(number), cells, MAP.key))]
    if number == 3:
        rows = rows_of(dict.fromkeys(LARGE_MODELS, {}), cells, MAP.key)
        shown = columns.models_columns([BACKBONE], MAP, [], BY_SIZE)
        tables.append(make_table(f"{SETTING}: {columns.NOT_IN_PAPER}", shown, rows, columns.BEYOND))
    subject = {3: "global and local kernels", 4: "with strong baselines"}[number]
    title = f"Table {number}: object detection, {subject}."
    return columns.document(f"table{number}", title, tables, [SPREAD, SPLITS], [STARTS, columns.GRID], columns.SOURCE)


def _others(cells: list[Cell]) -> Document:
    """Returns one table a data set, and one for COCO in other settings."""
    tables = []
    for data in sorted({cell.data for cell in cells}):
        here = [cell for cell in cells if cell.data == data]
        why = OTHER_SETTING if data.is_coco else columns.OTHER_DATA
        rows = rows_of(dict.fromkeys((cell.model for cell in here), {}), here, MAP.key)
        for words, part in columns.sections(rows, why):
            tables.append(make_table(f"{data}: {words}", COLUMNS, part))
    title = "Object detection on other data, or in other settings."
    return columns.document("detection", title, tables, [SPREAD], [columns.GRID], COUNTING)
