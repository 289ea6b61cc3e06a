"""``dk-bench plan``: what a sweep will take, before it runs: hours, memory, disk, price."""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from dk_bench.cli.options import add_number, add_output, check_file
from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.plan import printed
from dk_bench.plan.devices import CPU, DEVICES, Device, device_called, device_named
from dk_bench.plan.estimate import Machine, plan_cell
from dk_bench.plan.listed import list_cells
from dk_bench.plan.measured import read_speeds
from dk_bench.reading.shipped import shipped_names
from dk_bench.tables.terminal import show

BENCHES = (Path("results/bench"), Path("results/gpu"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"With the package come the sweeps {', '.join(shipped_names('sweeps'))}."
    parser.add_argument("file", type=Path, nargs="+", help="sweep file of dk-bench train, or the name of a package's")
    gpu = f"device to plan for: {', '.join(DEVICES)} (a GPU that is here, else one core of a CPU)"
    parser.add_argument("--gpu", metavar="NAME", help=gpu)
    add_number(parser, "--count", "N", "devices of a run (one)", default=1)
    add_number(parser, "--price", "RATE", "of one device for an hour, in any currency", least=0.0)
    images = "images to train on and to validate on, where neither configuration nor name says how many"
    parser.add_argument("--images", metavar="TRAIN,VAL", type=_images, help=images)
    bench = "records of `dk-bench bench`, files or folders of them (results/bench and results/gpu, where they are)"
    parser.add_argument("--bench", nargs="+", type=Path, metavar="RECORD", help=bench)
    add_output(parser, "FILE", "write the plan there, as JSON")


def _images(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected TRAIN,VAL, such as 1281167,50000, got {text!r}")
    train, val = map(int, text.split(","))
    return train, val


def run(args: argparse.Namespace) -> None:
    """Prints and writes the plan. Raises UserError for a faulty file, a device that is not known, data of unknown size,
    and a batch or a precision that does not go with the devices."""
    check_file(args.output)
    machine = Machine(_device(args.gpu), args.count, args.price)
    speeds = read_speeds(places_of_benches(args.bench))
    plans = [plan_cell(cell, machine, args.images, speeds) for cell in list_cells(args.file)]
    show(printed.document(plans, machine), Console())
    if args.output:
        with system_errors(f"--output {args.output}"):
            write_atomically(args.output, json.dumps(as_json(machine, plans), indent=1) + "\n")


def places_of_benches(given: list[Path] | None) -> list[Path]:
    """Returns where records of speed are looked for."""
    return given or [place for place in BENCHES if place.is_dir()]


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


def as_json(machine: Machine, plans: list[Any]) -> dict[str, Any]:
    """Returns a plan as plain data."""
    return {
        "kind": "plan",
        "schema_version": 1,
        "device": machine.device.name,
        "count": machine.count,
        "price": machine.price,
        "cells": [dataclasses.asdict(plan) for plan in plans],
    }
