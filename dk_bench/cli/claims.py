"""``dk-bench claims``: what records say of each of the paper's claims, as a table and as a picture."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from dk_bench.claims.document import claims_document, claims_summary, record_folders
from dk_bench.claims.file import CLAIMS_FILE, load_claims
from dk_bench.claims.findings import families, untested
from dk_bench.claims.plan import keep_plan, kept_plan, plan_commits
from dk_bench.cli.options import add_output, check_file
from dk_bench.errors import UserError
from dk_bench.files import write_atomically
from dk_bench.report.forest import forest_file
from dk_bench.report.readme import write_claims
from dk_bench.runs.record import as_it_stands, find_records, read_record
from dk_bench.tables.render import markdown, show

RESULTS = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records", nargs="*", type=Path, metavar="FOLDER", help="folders with records, or record files (results)"
    )
    parser.add_argument("--claims", type=Path, metavar="FILE", default=CLAIMS_FILE, help="claims (the paper's)")
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="the plan of the experiments: note down the commit of git that fixed it, in plan.json",
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="to put the picture and the verdicts into, between their markers"
    )
    add_output(parser, "FILE", "table to write, and a picture beside it (claims.md in the first folder)")


def run(args: argparse.Namespace) -> int:
    """Prints and writes the claims. Raises UserError for a missing folder, a file that is no record, and bad claims."""
    folders = args.records or [RESULTS]
    first = folders[0] if folders[0].is_dir() else folders[0].parent
    out = args.output or first / "claims.md"
    check_file(out)
    claims = load_claims(args.claims)
    records = {path: as_it_stands(read_record(path)) for path in find_records(folders)}
    found = families(claims, records.values(), first)
    written = []
    try:
        if args.plan:
            written.append(keep_plan(first, args.plan, plan_commits(found, args.plan)))
        paths = {record.run_id: path.parent for path, record in records.items()}
        document = claims_document(
            found, untested(claims, found), kept_plan(first), record_folders(found, paths, out.parent)
        )
        show(document, Console())
        written.append(write_atomically(out, markdown(document)))
        written.append(write_atomically(out.with_suffix(".svg"), forest_file(found)))
        if args.readme:
            link = Path(os.path.relpath(out.with_suffix(""), args.readme.parent)).as_posix()
            written.append(write_claims(args.readme, claims_summary(found, link)))
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
    print(f"{len(records)} records; wrote {', '.join(map(str, written))}")
    return 0
