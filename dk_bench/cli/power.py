"""``dk-bench power RECORDS... --contrast A-B --effect X``: the seeds that a difference takes, planned from records."""

import argparse
import math
from collections.abc import Collection

from rich.console import Console

from dk_bench.claims.planning import Aim, find_cells, plan_seeds, read_contrast
from dk_bench.claims.simulation import simulate
from dk_bench.cli.options import add_number, add_output, check_file
from dk_bench.cli.records import add_records, check_all_hold, read_records
from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.runs.record import TRAINING, RunRecord
from dk_bench.tables.cells import Data, gather
from dk_bench.tables.contrasts import MARGIN, POWER
from dk_bench.tables.render import markdown
from dk_bench.tables.table import Document
from dk_bench.tables.terminal import show
from dk_bench.tasks import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, default="")
    contrast = "the cells by their models' names; A[KEY=VALUE] where a model has several"
    parser.add_argument("--contrast", metavar="A-B", help=contrast)
    metric = "of the end of training (val/top1 of classifiers, val/mAP of detectors)"
    parser.add_argument("--metric", metavar="NAME", help=metric)
    parser.add_argument("--data", metavar="NAME", help="data set, where the cells are on several")
    parser.add_argument("--effect", type=float, metavar="X", help="difference to tell from zero, in points")
    margin = f"half the width of what counts as no difference, in points ({MARGIN})"
    add_number(parser, "--margin", "M", margin, default=MARGIN, least=0.0)
    power = f"how often it shall be found, a share of 1 ({POWER})"
    parser.add_argument("--power", type=float, default=POWER, metavar="P", help=power)
    add_number(parser, "--family", "N", "how many contrasts Holm's method corrects for (1)", default=1)
    simulated = "no records: the errors of verdicts, simulated, and their power at the paper's effects"
    parser.add_argument("--simulate", action="store_true", help=simulated)
    add_output(parser, "FILE", "Markdown file to write too")


def run(args: argparse.Namespace) -> None:
    """Prints the table, and writes it where asked. Raises UserError for records and arguments that do not fit."""
    check_file(args.output)
    if args.simulate and (args.records or args.contrast or args.effect is not None):
        raise UserError("--simulate: takes neither records nor --contrast and --effect")
    document = simulate() if args.simulate else _plan(args)
    show(document, Console())
    if args.output:
        with system_errors(f"--output {args.output}"):
            write_atomically(args.output, markdown(document))


def _plan(args: argparse.Namespace) -> Document:
    if not args.records:
        raise UserError("expected folders with records, or --simulate")
    check_all_hold(args.records)
    if args.contrast is None:
        raise UserError("--contrast: expected A-B, as in test_resnetdw_dk-test_resnetdw")
    if args.effect is None or not math.isfinite(args.effect) or args.effect == 0:
        raise UserError(f"--effect: expected a difference in points, not 0, got {args.effect}")
    if not 0 < args.power < 1:
        raise UserError(f"--power: expected a share above 0 and below 1, got {args.power}")
    terms = read_contrast(args.contrast)
    found = read_records(args.records).values()
    models = {term.model for term in terms}
    there = [r for r in found if r.model["name"] in models and args.data in (None, Data.of(r).name)]
    task = _task_of(there or found)
    cells = find_cells(terms, gather(record for record in found if record.task == task), args.data)
    metric = args.metric or KINDS[task].metric
    return plan_seeds(terms, cells, metric, Aim(args.effect, args.margin, args.power, args.family))


def _task_of(records: Collection[RunRecord]) -> str:
    tasks = sorted({record.task for record in records if record.task in KINDS})
    if len(tasks) > 1:
        raise UserError(f"--contrast: records of {' and '.join(tasks)}; name a data set by --data, or give fewer")
    return tasks[0] if tasks else TRAINING
