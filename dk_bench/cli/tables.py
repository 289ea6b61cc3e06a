"""``dk-bench tables``: run records to the paper's tables, on the terminal and as files."""

import argparse
import os
from collections import Counter
from pathlib import Path

from rich.console import Console

from dk_bench.cli.options import add_output, check_folder
from dk_bench.cli.records import RESULTS, add_records, check_all_hold, read_records, writing_below
from dk_bench.models import LARGE_MODELS, PAPER_MODELS
from dk_bench.report.readme import write_figures
from dk_bench.runs.record import DETECTION, EVALUATION, TRAINING
from dk_bench.runs.wandb_records import fetch_records
from dk_bench.tables.costs import count_costs, load_costs, write_costs
from dk_bench.tables.documents import NAMES, build_documents, write_documents
from dk_bench.tables.terminal import show

TABLES = {name.removeprefix("table"): (name,) for name in NAMES}
TABLES |= {"detection": ("table3", "table4", "detection"), "all": NAMES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser)
    wandb = "records of a W&B sweep, or of a project: ENTITY/PROJECT"
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT/SWEEP", help=wandb)
    parser.add_argument("--table", choices=TABLES, default="all", help="which table (all)")
    add_output(parser, "FOLDER", "for Markdown, CSV and LaTeX files (the first folder of records)")
    readme = "to put the differences into, and the speeds of bench/*.json, between their markers"
    parser.add_argument("--readme", type=Path, metavar="FILE", help=readme)
    parser.add_argument("--recount", action="store_true", help="count the large models again first (minutes)")


def run(args: argparse.Namespace) -> None:
    """Prints and writes the tables. Raises UserError for a missing folder or a file that is no record."""
    places = [*args.records, *([fetch_records(args.wandb)] if args.wandb else [])] or [RESULTS]
    folder = args.output or (places[0] if places[0].is_dir() else places[0].parent)
    check_folder(folder)
    check_all_hold(args.records)
    records = list(read_records(places).values())
    if args.recount:
        write_costs(count_costs(PAPER_MODELS | LARGE_MODELS))
    documents = build_documents(records, load_costs())
    chosen = [documents[name] for name in TABLES[args.table] if name in documents]
    console = Console()
    for document in chosen:
        show(document, console)
    with writing_below(folder):
        written = write_documents(chosen, folder)
        if args.readme:
            link = Path(os.path.relpath(folder, args.readme.parent)).as_posix()
            written.append(write_figures(args.readme, documents.values(), folder, link))
    left_out = Counter(record.task for record in records if record.task not in (TRAINING, DETECTION))
    words = [f", {n} of them {task if task != EVALUATION else 'evaluations'}" for task, n in sorted(left_out.items())]
    print(f"{len(records)} records{''.join(f'{each}, which no table has' for each in words)}; wrote", end=" ")
    print(", ".join(map(str, written)) or "nothing")
