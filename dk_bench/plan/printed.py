"""Plans as tables: on a terminal, and in Markdown between markers of a page."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dk_bench.errors import UserError, system_errors
from dk_bench.files import write_atomically
from dk_bench.plan.estimate import CellPlan, Machine, totals
from dk_bench.plan.roofline import ON_CPU, family
from dk_bench.tables.entries import Number, Right, Value
from dk_bench.tables.render import markdown_table
from dk_bench.tables.table import Column, Document, Table, make_table

Row = Mapping[str, Any]  # a CellPlan's fields, or the totals, which have some of them
MEGA, GIGA = 1e6, 1e9
TOTAL = "total"
SOURCES = (
    "Images/s are of all devices of a run. record: a record of `dk-bench bench train` has the model at that size "
    "and batch on the device; record, scaled: it has another batch or size, the rigid base, or autocast for true half "
    "precision; guess: from multiply-adds, bytes moved and the device's peaks."
)
MEASURED = (
    "Measured here by a trial of each cell. A run's time is that of its process, from its start to its end. Memory is "
    "of one device, estimated but on GPUs; disk is of all runs."
)
LEFT_OUT = (
    "Hours are of one run's training and evaluation. Starting, loading that cannot keep up, and what devices lose by "
    "waiting for each other are not in them. Memory is of one device, estimated; disk is of all runs."
)


def document(plans: Sequence[CellPlan], machine: Machine, notes: Iterable[str] = ()) -> Document:
    """Returns a table a sweep, each with its total, and the total of all where there are several."""
    by_sweep: dict[str, list[CellPlan]] = {}
    for plan in plans:
        by_sweep.setdefault(plan.sweep, []).append(plan)
    tables = [_table(name, several) for name, several in by_sweep.items()]
    said = [f"All: {in_words(totals(plans))}."] if len(tables) > 1 else []
    about = [MEASURED] if any(plan.fit for plan in plans) else [SOURCES, LEFT_OUT]
    return Document("plan", f"Plan on {machine_words(machine)},", [*about, *notes, *said], tables)


def machine_words(machine: Machine) -> str:
    """Returns what a run has, in words."""
    if family(machine.device) == ON_CPU:
        return "one core of a CPU" if machine.count == 1 else f"{machine.count} cores of a CPU"
    return f"{machine.count} x {machine.device.name}"


def in_words(total: Row) -> str:
    """Returns totals in words."""
    price = "" if total["price"] is None else f", price {total['price']:,.2f}"
    hours = f"{total['device_hours']:,.1f} device-hours"
    return f"{total['runs']} runs, {hours}{price}, {total['disk'] / GIGA:,.1f} GB on disk"


def _table(name: str, plans: list[CellPlan]) -> Table:
    rows = [dataclasses.asdict(plan) for plan in plans]
    notes = dict.fromkeys(plan.note for plan in plans if plan.note)
    total = totals(plans) | {"name": TOTAL}
    return make_table(name, COLUMNS, [*rows, total], " ".join(notes), section=lambda row: row["name"] == TOTAL)


def duration(seconds: float) -> str:
    """Returns a time in the unit that it is short in."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.2f} {name}"
    return f"{seconds:.1f} s"


def _number(key: str, unit: float = 1.0, digits: int = 1) -> Callable[[Row], Value]:
    def value(row: Row) -> Value:
        return Right("") if row.get(key) is None else Number(row[key] / unit, digits)

    return value


def _has_numbers(values: Iterable[Value]) -> bool:
    return any(isinstance(value, Number) for value in values)


COLUMNS: list[Column[Row]] = [
    Column("cell", lambda row: row["name"]),
    Column("runs", _number("runs", digits=0)),
    Column("epochs", _number("epochs", digits=0)),
    Column("#P (M)", _number("params", MEGA, 2)),
    Column("GMACs", _number("macs", GIGA, 3)),
    Column("memory (GB)", _number("memory", GIGA, 2)),
    Column("images/s", _number("train_rate", digits=0)),
    Column("images/s from", lambda row: row.get("rate_source", "")),
    Column("cores that load", _number("cores", digits=0), when=_has_numbers),
    Column("a run", lambda row: Right(duration(3600 * row["run_hours"]) if "run_hours" in row else "")),
    Column("device-hours", _number("device_hours", digits=2)),
    Column("price", _number("price", digits=2), when=_has_numbers),
    Column("disk (GB)", _number("disk", GIGA, 2)),
]
BEGIN, END = "<!-- plan, by `make tables` -->", "<!-- end of the plan -->"
LEFT = ("runs", "price", "disk (GB)")  # columns that the sums have in place of the cells


def write_between(path: Path, plans: Sequence[CellPlan], machine: Machine) -> Path:
    """Puts what `in_markdown` says between the markers in a page, atomically. Raises UserError for a page that cannot
    be read or has not both markers once."""
    with system_errors(f"{path}: cannot be read"):
        content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise UserError(f"{path}: expected the line {BEGIN}, and below it {END}, once each")
    before, after = content.partition(BEGIN)[0], content.partition(END)[2]
    return write_atomically(path, f"{before}{BEGIN}\n\n{in_markdown(plans, machine)}\n\n{END}{after}")


def in_markdown(plans: Sequence[CellPlan], machine: Machine) -> str:
    """Returns the cells of all sweeps, one that several have once, and the total of each sweep."""
    once = {(plan.data, plan.cell): plan for plan in plans}
    rows = [dataclasses.asdict(plan) for plan in once.values()]
    shown = [Column("data", lambda row: row["data"]), *(column for column in COLUMNS if column.name not in LEFT)]
    by_sweep: dict[str, list[CellPlan]] = {}
    for plan in plans:
        by_sweep.setdefault(plan.sweep, []).append(plan)
    sums = [{"sweep": name, **totals(several)} for name, several in by_sweep.items()]
    sums.append({"sweep": TOTAL, **totals(plans)})
    tables = make_table("", shown, rows), make_table("", SUMS, sums)
    return "\n\n".join([f"Each run on {machine_words(machine)}:", *map(markdown_table, tables)])


SUMS: list[Column[Row]] = [
    Column("sweep", lambda row: row["sweep"]),
    Column("runs", _number("runs", digits=0)),
    Column("device-hours", _number("device_hours", digits=0)),
    Column("price", _number("price", digits=2), when=_has_numbers),
    Column("disk (GB)", _number("disk", GIGA, 1)),
]
