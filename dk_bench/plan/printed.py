"""Plans as tables: on a terminal, and in Markdown between markers of a page."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dk_bench.plan.estimate import CellPlan, Machine, totals
from dk_bench.plan.roofline import ON_CPU, family
from dk_bench.tables.entries import Number, Right, Value
from dk_bench.tables.table import Column, Document, Table, make_table

Row = Mapping[str, Any]  # a CellPlan's fields, or the totals, which have some of them
MEGA, GIGA = 1e6, 1e9
TOTAL = "total"
SOURCES = (
    "Images/s are of all devices of a run. record: a record of `dk-bench bench train` has the model at that size "
    "on the device; record, scaled: it has another size, or the rigid base; guess: from multiply-adds, bytes moved and "
    "the device's peaks."
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
    return Document("plan", f"Plan on {machine_words(machine)},", [SOURCES, LEFT_OUT, *notes, *said], tables)


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
    return make_table(name, COLUMNS, [*rows, total], ". ".join(notes), section=lambda row: row["name"] == TOTAL)


def _number(key: str, unit: float = 1.0, digits: int = 1) -> Callable[[Row], Value]:
    def value(row: Row) -> Value:
        return Right("") if row.get(key) is None else Number(row[key] / unit, digits)

    return value


def _has_price(values: Iterable[Value]) -> bool:
    return any(isinstance(value, Number) for value in values)


COLUMNS: list[Column[Row]] = [
    Column("cell", lambda row: row["name"]),
    Column("runs", _number("runs", digits=0)),
    Column("#P (M)", _number("params", MEGA, 2)),
    Column("GMACs", _number("macs", GIGA, 3)),
    Column("memory (GB)", _number("memory", GIGA, 2)),
    Column("images/s", _number("train_rate", digits=0)),
    Column("images/s from", lambda row: row.get("rate_source", "")),
    Column("hours a run", _number("run_hours", digits=2)),
    Column("device-hours", _number("device_hours", digits=2)),
    Column("price", _number("price", digits=2), when=_has_price),
    Column("disk (GB)", _number("disk", GIGA, 2)),
]
