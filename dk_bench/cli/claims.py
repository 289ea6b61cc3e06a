"""``dk-bench claims``: what records say of each of the paper's claims, as a table and as a picture."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from dk_bench.claims.document import claims_document, claims_summary, record_folders
from dk_bench.claims.file import CLAIMS_FILE, load_claims
from dk_bench.claims.findings import families, untested
from dk_bench.claims.plan import keep_plan, kept_plan, plan_commits
from dk_bench.cli.options import add_output, check_file
from dk_bench.cli.records import RESULTS, add_records, read_records, writing_below
from dk_bench.files import write_atomically
from dk_bench.report.forest import forest_file
from dk_bench.report.readme import write_claims
from dk_bench.tables.render import markdown
from dk_bench.tables.terminal import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, "FOLDER")
    parser.add_argument("--claims", type=Path, metavar="FILE", default=CLAIMS_FILE, help="claims (the paper's)")
    plan = "the plan of the experiments: note down the commit of git that fixed it, in plan.json"
    parser.add_argument("--plan", type=Path, metavar="FILE", help=plan)
    readme = "to put the picture and the verdicts into, between their markers"
    parser.add_argument("--readme", type=Path, metavar="FILE", help=readme)
    add_output(parser, "FILE", "table to write, and a picture beside it (claims.md in the first folder)")


def run(args: argparse.Namespace) -> None:
    """Prints and writes the claims. Raises UserError for a missing folder, a file that is no record, and bad claims."""
    places = args.records or [RESULTS]
    folder = places[0] if places[0].is_dir() else places[0].parent
    out = args.output or folder / "claims.md"
    check_file(out)
    claims = load_claims(args.claims)
    records = read_records(places)
    found = families(claims, records.values(), folder)
    with writing_below(out):
        written = [keep_plan(folder, args.plan, plan_commits(found, args.plan))] if args.plan else []
        paths = {record.run_id: path.parent for path, record in records.items()}
        folders = record_folders(found, paths, out.parent)
        document = claims_document(found, untested(claims, found), kept_plan(folder), folders)
        show(document, Console())
        written.append(write_atomically(out, markdown(document)))
        written.append(write_atomically(out.with_suffix(".svg"), forest_file(found)))
        if args.readme:
            link = Path(os.path.relpath(out.with_suffix(""), args.readme.parent)).as_posix()
            written.append(write_claims(args.readme, claims_summary(found, link)))
    print(f"{len(records)} records; wrote {', '.join(map(str, written))}")
