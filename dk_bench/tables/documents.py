"""Records as documents: the paper's four tables with its figures beside ours, the demo's, any other model's, and those
of models that started from trained weights."""

import re
from collections.abc import Iterable
from pathlib import Path

from dk_bench.files import write_atomically
from dk_bench.runs.record import DETECTION, TRAINING, RunRecord
from dk_bench.tables.cells import gather
from dk_bench.tables.classification import models_documents, paper_document
from dk_bench.tables.costs import Costs
from dk_bench.tables.detection import detection_documents
from dk_bench.tables.render import FORMATS
from dk_bench.tables.table import Document

# In the order that a terminal has.
NAMES = ("table1", "table2", "table3", "table4", "demo", "other", "finetuned", "detection")
SURROGATES = re.compile("[\ud800-\udfff]")


def build_documents(records: Iterable[RunRecord], costs: Costs | None = None) -> dict[str, Document]:
    """Returns the documents by their `NAMES`: ``other`` where there are other models, ``finetuned`` where some of these
    started from trained weights, ``detection`` where there are detectors on other data than COCO, all others in any
    case. Only finished runs give figures.

    ``costs`` gives params, macs and sampling_macs by model name, for rows that have no record on ImageNet.
    """
    records = list(records)
    cells = gather(record for record in records if record.task == TRAINING)  # evaluations are no cells of training
    documents = [paper_document(number, cells, costs) for number in (1, 2)]
    documents += detection_documents(gather(record for record in records if record.task == DETECTION))
    documents += models_documents(cells)
    return {document.name: document for document in documents}


def write_documents(documents: Iterable[Document], folder: str | Path) -> list[Path]:
    """Writes each document as Markdown, CSV and LaTeX, atomically. Raises OSError where it cannot."""
    return [
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes the sign for what is no character.
        write_atomically(Path(folder) / f"{document.name}.{suffix}", SURROGATES.sub("\ufffd", render(document)))
        for document in documents
        for suffix, render in FORMATS.items()
    ]
