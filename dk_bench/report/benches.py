"""Reads records of `dk-bench bench` as a report shows them: ratios that can be drawn, and all of it as a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dk_bench.analysis.bench.calls import COPY
from dk_bench.analysis.bench.timings import base_of
from dk_bench.errors import UserError
from dk_bench.files import read_json
from dk_bench.tables.entries import Number
from dk_bench.tables.table import Column, Table, make_table

Row = dict[str, Any]  # a timing of a record, with what its part says of all
INSTRUCTIONS = ("instructions", "instructions")
NOT_ALWAYS = ("cold", "peak_memory")  # measured


@dataclass(frozen=True)
class Ratios:
    """Factors to a base, by row and mode, as `dk_bench.report.plots.ratios` draws them."""

    title: str
    note: str
    axis: str
    rows: dict[str, dict[str, list[float]]]

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(mode for by_mode in self.rows.values() for mode in by_mode))


@dataclass(frozen=True)
class Bench:
    """A record of `dk-bench bench`: on what and with which code, what can be drawn of it, and all of it as a table."""

    device: dict[str, Any]
    git: dict[str, Any]
    ratios: list[Ratios]
    table: Table


def read_bench(path: Path) -> Bench:
    """Reads a record. Raises UserError for one that cannot be read, is of another kind or has figures that are none,
    and KeyError, TypeError or ValueError for one of another shape."""
    content = read_json(path)
    readers = {"operator times": _operators, "model speeds": _speeds, "image rates": _rates}
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in readers:
        raise UserError("no record of `dk-bench bench`")
    return Bench(dict(content["device"]), dict(content["git"]), *readers[kind](content))


def _rows(content: Row, name: str) -> list[Row]:
    """Returns what a record lists under a name, by its parts: with the instruction set of each, and what disturbed it,
    as a note; older records have one part."""
    rows = []
    for part in content.get("parts") or [content]:
        said = "; ".join(map(str, part.get("warnings", [])))
        about = {
            "instructions": part.get("instruction_set", ""),
            "disturbed": f" The machine was not quiet: {said}." if said else "",
        }
        rows += [row | about for row in part[name]]
    return rows


def _ratios(title: str, note: str, drawn: Iterable[tuple[Row, tuple[Any, ...], str, str, str, Any]]) -> list[Ratios]:
    """Groups ratios: of each its row, what its group is called by, what it is over, its own name and mode, and the
    ratio."""
    found: dict[tuple[str, ...], Ratios] = {}
    for row, words, axis, name, mode, ratio in drawn:
        about = ", ".join(str(word) for word in (title, *words) if word)
        group = found.setdefault((about, row["instructions"], axis), Ratios(about, note + row["disturbed"], axis, {}))
        group.rows.setdefault(name, {}).setdefault(mode, []).append(_positive("ratio", ratio))
    return list(found.values())


def _operators(content: Row) -> tuple[list[Ratios], Table]:
    rows = _rows(content, "timings")
    for row in rows:
        row["name"] = f"{row['operator']} ({row['variant']})" if row["variant"] else str(row["operator"])
        row["low"], row["high"] = row["quartiles"]
        row["axis"] = f"time over PyTorch's {base_of(row)}"
    drawn = (
        (row, (row["instructions"], row["setting"]), row["axis"], row["name"], str(row["mode"]), row["ratio"])
        for row in rows
        if row["operator"] not in (base_of(row), COPY)
    )
    note = "Large marks: geometric mean over the shapes. Small marks: each shape."
    ratios = _ratios("Operators", note, drawn)
    columns = (
        *_texts(("operator", "name"), ("pass", "mode"), ("C x H x W", "shape"), ("stored as", "setting"), INSTRUCTIONS),
        *_numbers(("1st quartile ms", "low", 3, 1e3), ("median ms", "median", 3, 1e3)),
        *_numbers(("3rd quartile ms", "high", 3, 1e3), ("cold ms", "cold", 3, 1e3)),
        *_numbers(("x PyTorch's", "ratio", 2, 1), ("memory MB", "peak_memory", 1, 1e-6)),
    )
    return ratios, make_table("Operator times", columns, rows)


def _speeds(content: Row) -> tuple[list[Ratios], Table]:
    settings, rows = content["settings"], _rows(content, "speeds")
    for row in rows:
        batch, size = (row.get(name, settings.get(name)) for name in ("batch", "size"))
        row["batches"] = f"batches of {batch} at {size}"
    over = "images/s over the rigid base's"
    drawn = (
        (row, (row["batches"], settings["precision"], row["instructions"]), over, str(row["model"]), mode, row[ratio])
        for row in rows
        for mode, ratio in (("training", "train_ratio"), ("evaluation", "eval_ratio"))
    )
    ratios = _ratios("Models", "Random weights, offsets spread at random.", drawn)
    columns = (
        *_texts(("model", "model"), ("batch", "batches"), INSTRUCTIONS),
        *_numbers(("train images/s", "train_images_per_second", 1, 1), ("x base", "train_ratio", 2, 1)),
        *_numbers(("eval images/s", "eval_images_per_second", 1, 1), ("x base", "eval_ratio", 2, 1)),
        *_numbers(("memory MB", "peak_memory", 0, 1e-6)),
    )
    return ratios, make_table("Model speeds", columns, rows)


def _rates(content: Row) -> tuple[list[Ratios], Table]:
    rows = [{"workers": 0} | row for row in _rows(content, "rates")]  # older records have none
    columns = (
        *_texts(("source", "source"), ("decoded", "decoded"), ("size", "size"), ("transform", "mode")),
        *_texts(("workers", "workers"), INSTRUCTIONS),
        *_numbers(("images/s", "images_per_second", 0, 1), ("at the median", "median", 0, 1)),
    )
    return [], make_table("Images a second of the data loader", columns, rows)


def _texts(*columns: tuple[str, str]) -> list[Column[Row]]:
    """Returns columns of texts: of each its head and the key of a row."""
    return [Column(head, lambda row, key=key: str(row[key])) for head, key in columns]


def _numbers(*columns: tuple[str, str, int, float]) -> list[Column[Row]]:
    """Returns columns of numbers: of each its head, the key of a row, digits, and the factor to its unit."""
    return [Column(head, partial(_number, *how)) for head, *how in columns]


def _number(key: str, digits: int, factor: float, row: Row) -> Number:
    """Returns a positive number of a row, or none of one that was not measured. Raises UserError for any other."""
    value = row.get(key) if key in NOT_ALWAYS else row[key]
    return Number(None if not value and key in NOT_ALWAYS else factor * _positive(key, value), digits)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, int | float) and 0 < value < 1e30:
        return value
    raise UserError(f"{name} is {str(value)[:60]!r}, expected a positive number")
