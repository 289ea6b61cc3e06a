"""``dk-bench plan``: what a sweep will take, before it runs: hours, memory, disk, price."""

import argparse
import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from dk_bench.cli.options import add_number, add_output, check_file, check_folder
from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.plan import printed, trials
from dk_bench.plan.comparing import checks_document, compare, read_plan
from dk_bench.plan.devices import CPU, DEVICES, Device, device_called, device_named
from dk_bench.plan.estimate import CellPlan, Machine, Speeds, plan_cell
from dk_bench.plan.listed import PlannedCell, list_cells
from dk_bench.plan.refit import refit
from dk_bench.reading.shipped import shipped_names
from dk_bench.runs.identity import devices_asked
from dk_bench.sweep.runner import available_cores, available_gpus
from dk_bench.tables.render import markdown
from dk_bench.tables.terminal import show

BENCHES = (Path("results/bench"), Path("results/gpu"))
SCHEMA_VERSION = 1
ELSEWHERE = ("gpu", "count", "images", "bench")  # options that --fit, which measures here, has no use for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"With the package come the sweeps {', '.join(shipped_names('sweeps'))}."
    file = "sweep file of dk-bench train, or the name of one of the package's; with --check a plan that --output wrote"
    parser.add_argument("file", type=Path, nargs="*", help=file)
    gpu = f"device to plan for: {', '.join(DEVICES)} (a GPU that is here, else one core of a CPU)"
    parser.add_argument("--gpu", metavar="NAME", help=gpu)
    add_number(parser, "--count", "N", "devices of a run (one)")
    add_number(parser, "--price", "RATE", "of one device for an hour, in any currency", least=0.0)
    images = "images to train, validate and test on (VAL), where neither configuration nor name says how many"
    parser.add_argument("--images", metavar="TRAIN,VAL[,TEST]", type=_images, help=images)
    bench = "records of `dk-bench bench`, files or folders of them (results/bench and results/gpu, where they are)"
    parser.add_argument("--bench", nargs="+", type=Path, metavar="RECORD", help=bench)
    add_number(parser, "--runs", "N", "at most N runs of each file, as `dk-bench sweep` has it")
    add_number(parser, "--random-seed", "SEED", "of what method random draws (0)", default=0, least=0)
    fit = "measure here: start-up, some steps, an evaluation and a checkpoint of each cell"
    parser.add_argument("--fit", action="store_true", help=fit)
    add_number(parser, "--steps", "N", f"of each epoch that --fit tries ({trials.STEPS})", default=trials.STEPS)
    add_number(parser, "--workers", "N", "runs at a time, as `dk-bench sweep` has it; with --fit, also trials")
    check = "compare a plan that was made with --fit with the records of its runs below a folder"
    parser.add_argument("--check", type=Path, metavar="RUNS", help=check)
    again = "write the tables of records of --check as Markdown, to --output"
    parser.add_argument("--tables-from", nargs="*", type=Path, metavar="RECORD", help=again)
    refits = "fit the guesses anew to the records of --bench first, for all later plans"
    parser.add_argument("--refit", action="store_true", help=refits)
    page = "page to put the table into, between its markers"
    parser.add_argument("--readme", type=Path, metavar="FILE", help=page)
    add_output(parser, "FILE", "write the plan, or the check, there, as JSON")


def _images(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){1,2}", text):
        raise argparse.ArgumentTypeError(f"expected TRAIN,VAL[,TEST], such as 1281167,50000, got {text!r}")
    return tuple(map(int, text.split(",")))


def run(args: argparse.Namespace) -> None:
    """Prints and writes the plan. Raises UserError for a faulty file, a device that is not known, data of unknown size,
    a batch or a precision that does not go with the devices, and a trial that fails."""
    check_file(args.output)
    if args.refit:
        print(f"wrote {refit(_benches(args.bench))}", file=sys.stderr)
    if args.tables_from is not None:
        _write_tables(args)
    elif not args.file:
        if not args.refit:
            raise UserError("expected a sweep file, --tables-from or --refit")
    elif args.check:
        _compare(args)
    else:
        _plan(args)


def _plan(args: argparse.Namespace) -> None:
    if args.fit and (given := next((name for name in ELSEWHERE if getattr(args, name)), None)):
        raise UserError(f"--{given}: does not go with --fit, which measures the configurations on this machine")
    cells = list_cells(args.file, runs=args.runs, seed=args.random_seed)
    machine = Machine(_device(args.gpu), args.count or (_devices(cells) if args.fit else 1), args.price)
    speeds = Speeds.read(_benches(args.bench))
    if args.fit:
        plans, more = _fitted(args, cells, machine)
        notes = [f"All runs, {more['workers']} at a time: {printed.duration(more['wall_seconds'])}."]
    else:
        plans, more, notes = [plan_cell(cell, machine, args.images, speeds) for cell in cells], {}, []
    show(printed.document(plans, machine, notes), Console())
    if args.readme:
        printed.write_between(args.readme, plans, machine)
    _write(args, _as_json(machine, plans) | more)


def _fitted(
    args: argparse.Namespace, cells: list[PlannedCell], machine: Machine
) -> tuple[list[CellPlan], dict[str, Any]]:
    """Returns the plans of all cells by trials of them here, and what a plan says of all runs besides."""
    runs = sum(cell.runs for cell in cells)
    workers = min(args.workers or len(available_gpus()) or available_cores(), runs)
    console, begin = Console(stderr=True), time.monotonic()
    with console.status("trials") as status:
        fits = trials.run_trials(cells, workers, args.steps, lambda job: job and status.update(f"trial of {job.name}"))
    plans = [plan_cell(cell, machine, None, Speeds(), fit) for cell, fit in zip(cells, fits, strict=True)]
    return plans, {
        "workers": workers,
        "steps": args.steps,
        "trial_seconds": time.monotonic() - begin,
        "wall_seconds": trials.sweep_seconds(cells, fits, workers),
        "recorded_seconds": trials.sweep_seconds(cells, fits, workers, recorded=True),
    }


def _compare(args: argparse.Namespace) -> None:
    """Compares a plan with the records of its runs, and says how near it came."""
    if len(args.file) > 1:
        raise UserError(f"--check {args.check}: expected one plan, got {len(args.file)}")
    if not args.check.is_dir():
        raise UserError(f"--check {args.check}: no such folder")
    record = compare(read_plan(args.file[0]), args.check)
    for row in (*record["cells"], {"name": "all runs", **record["total"]}):
        predicted, measured = printed.duration(row["predicted"]), printed.duration(row["measured"])
        print(f"{row['name']}: predicted {predicted}, measured {measured}, {row['ratio']:.2f}")
    _write(args, record)


def _write_tables(args: argparse.Namespace) -> None:
    if not args.output:
        raise UserError("--tables-from: expected --output FILE.md, where the tables go")
    check_folder(args.output.parent)
    with system_errors(f"--output {args.output}"):
        write_atomically(args.output, markdown(checks_document(args.tables_from)))


def _write(args: argparse.Namespace, content: dict[str, Any]) -> None:
    if args.output:
        with system_errors(f"--output {args.output}"):
            write_atomically(args.output, json.dumps(content, indent=1) + "\n")
        print(f"wrote {args.output}", file=sys.stderr)


def _benches(given: list[Path] | None) -> list[Path]:
    """Returns where records of speed are looked for."""
    return given or [place for place in BENCHES if place.is_dir()]


def _devices(cells: list[PlannedCell]) -> int:
    """Returns the devices of a run as its configuration gives them. Raises UserError where cells differ in them."""
    counts = {devices_asked(cell.task.values) for cell in cells}
    if len(counts) > 1:
        raise UserError(f"runs on {' and '.join(map(str, sorted(counts)))} devices: expected sweeps of one number")
    return counts.pop()


def _device(name: str | None) -> Device:
    """Returns the device that is asked for, by default what is here. Raises UserError for one that is not known."""
    if name is not None:
        return device_named(name)
    import torch

    if not torch.cuda.is_available():
        return DEVICES[CPU]
    product = torch.cuda.get_device_name()
    if (device := device_called("cuda", product)) is None:
        raise UserError(f"no peaks are known of {product}: expected --gpu with one of {', '.join(DEVICES)}")
    return device


def _as_json(machine: Machine, plans: list[CellPlan]) -> dict[str, Any]:
    """Returns a plan as plain data."""
    return {
        "kind": "plan",
        "schema_version": SCHEMA_VERSION,
        "device": machine.device.name,
        "count": machine.count,
        "price": machine.price,
        "cells": [dataclasses.asdict(plan) for plan in plans],
    }
