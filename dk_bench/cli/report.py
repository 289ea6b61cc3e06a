"""``dk-bench report [FOLDER] [--output FILE]``: one HTML page from the records of a folder."""

import argparse
from pathlib import Path

from rich.console import Console

from dk_bench.cli.options import add_output, check_file
from dk_bench.errors import system_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folder = "folder with run records; its pictures and bench/*.json are shown too (results)"
    parser.add_argument("folder", nargs="?", type=Path, default="results", metavar="FOLDER", help=folder)
    add_output(parser, "FILE", "page to write (FOLDER/report.html)")


def run(args: argparse.Namespace) -> None:
    """Writes the page. Raises UserError for a missing folder and for a page that cannot be written."""
    out = args.output or args.folder / "report.html"
    check_file(args.output)
    with Console().status("reading the records, drawing"):
        from dk_bench.report.page import write_report  # torch and matplotlib take seconds to import

        with system_errors(f"--output {out}"):
            shown = write_report(args.folder, out)
    left_out = f", {shown['problems']} files left out, which the page names" if shown["problems"] else ""
    print(f"{shown['runs']} records, {shown['plots']} plots, {shown['pictures']} pictures{left_out}; wrote {out}")
