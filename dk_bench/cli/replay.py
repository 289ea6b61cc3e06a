"""``dk-bench replay RECORD key=value... [--run]``: what a run was made with; the same run again, and its metrics."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from dk_bench.cli.options import add_output
from dk_bench.errors import UserError, located
from dk_bench.processes.interrupts import Interrupted, deferred
from dk_bench.processes.launchers import without_launchers
from dk_bench.processes.requeue import OFF
from dk_bench.runs.record import RunRecord, read_record
from dk_bench.sweep import replay

OUTPUT = Path("runs/replay")
SHOWN = 20  # metrics that came out otherwise; the rest are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=Path, help="record of a training run")
    overrides = "what lies elsewhere on this machine, as data.train=PATH"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    parser.add_argument("--config", metavar="FILE", help="the configuration file, where it lies elsewhere")
    add_output(parser, "FOLDER", f"for the replay ({OUTPUT}/ and the record's run id)")
    parser.add_argument("--run", action="store_true", dest="again", help="train the run again and compare its metrics")
    parser.add_argument("--force", action="store_true", help="with --run: although commit, versions or settings differ")


def run(args: argparse.Namespace) -> int:
    """Shows a record's making; with --run trains the run again. Returns 0, or 1 where it fails or a metric differs.
    Raises UserError for a file that is no record, and with --run where this would not be the same run: another commit,
    changes then or now that no commit holds, other versions or settings; --force runs it all the same."""
    if args.force and not args.again:
        raise UserError("--force: goes with --run")
    record = read_record(args.record)
    output = args.output or OUTPUT / record.run_id
    config = obstacle = None
    try:
        command = replay.replay_command(record, output, args.config, args.overrides)
        config = replay.resolve(command, record.task)
    except UserError as error:  # without --run there is still much to show
        obstacle = error
    making = replay.compare_making(record, config)
    _show(record, args.record, making)
    print(f"\ncannot be run here: {obstacle}" if obstacle else f"\nagain: {shlex.join(command)}")
    if not args.again:
        return 0
    if obstacle:
        with located(args.record):
            raise obstacle
    found = replay.faults(record, making)
    if found and not args.force:
        raise UserError(f"{args.record}: would not be the same run: {'; '.join(found)}. --force runs it all the same")
    before = replay.replayed_below(output, record, args.record, config)
    if before and before[1].status == "finished":
        raise UserError(f"{before[0]}: was replayed there already; expected an --output without runs")
    sys.stdout.flush()  # before what the run prints
    status = _train([sys.executable, "-m", "dk_bench", *command[1:]])
    after = replay.replayed_below(output, record, args.record, config)
    if after is None:
        print(f"the replay left no record: exit status {status}")
        return 1
    return 0 if _compare(record, after[1]) and not status else 1


def _train(argv: list[str]) -> int:
    """Returns the exit status of a process of its own, which may start others. A signal that stops us goes on to it, so
    that it writes how it ended; Ctrl-C it gets itself, and heeds it once."""
    with deferred():
        process = subprocess.Popen(argv, env={**without_launchers(os.environ), **OFF})
    with process:
        try:
            return process.wait()
        except Interrupted as error:
            process.send_signal(error.signal)
            raise


def _compare(record: RunRecord, replayed: RunRecord) -> bool:
    """Tells whether there are metrics and all came out the same; says so."""
    compared, otherwise = replay.compare_metrics(record, replayed)
    print(f"{record.status} then, {replayed.status} now{f': {replayed.error}' if replayed.error else ''}")
    for words in otherwise[:SHOWN]:
        print(f"  {words}")
    print(f"{compared - len(otherwise)} of {compared} metrics are equal to the last bit")
    rounding = replay.compare_rounding(record.device, replayed.device)
    if otherwise and (other := [item for item in rounding if item.differs]):
        changed = "; ".join(f"{item.name}: {item.then} then, {item.now} now" for item in other)
        print(f"numbers are rounded otherwise, which makes another draw of the run: {changed}")
    return bool(compared) and not otherwise


def _show(record: RunRecord, path: Path, making: list[replay.Then]) -> None:
    print(f"{path}: {record.status}, began {record.started}, ended {record.ended}\n")
    print(f"command: {shlex.join(record.command)}\n")
    print("configuration:")
    print("".join(f"  {line}\n" for line in yaml.safe_dump(record.config, sort_keys=False, width=110).splitlines()))
    rows = [("", "then", "now", "")]
    rows += [(item.name, item.then, item.now, "differs" if item.differs else "") for item in making]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, (*widths, 0), strict=True)).rstrip())
