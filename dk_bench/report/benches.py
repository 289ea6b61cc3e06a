"""Records of `dk-bench bench` as a report shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY
from dk_bench.errors import UserError
from dk_bench.tables.entries import Number, Value
from dk_bench.tables.table import Table


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
    """Reads a record.

    Raises UserError for one of another kind or with figures that are none, OSError, and KeyError, TypeError or
    ValueError for one of another shape.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    parts = {"operator times": _operators, "model speeds": _speeds, "image rates": _rates}
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in parts:
        raise UserError("no record of `dk-bench bench`")
    return Bench(dict(content["device"]), dict(content["git"]), *parts[kind](content))


def _parts(content: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns the parts of a record with their instruction set and what disturbed them, as a note; older ones have one
    part.
    """
    parts = content.get("parts") or [content]
    return [(str(part.get("instruction_set", "")), _disturbed(part.get("warnings", [])), part) for part in parts]


def _disturbed(warnings: list[str]) -> str:
    return f" The machine was not quiet: {'; '.join(map(str, warnings))}." if warnings else ""


def _operators(content: dict[str, Any]) -> tuple[list[Ratios], Table]:
    times = ("1st quartile ms", "median ms", "3rd quartile ms", "cold ms")
    columns = ("operator", "pass", "C x H x W", "stored as", "instructions", *times, f"x {BASE}", "memory MB")
    rows: list[list[Value]] = []
    ratios = []
    for instructions, disturbed, part in _parts(content):
        by_setting: dict[str, dict[str, dict[str, list[float]]]] = {}
        for t in part["timings"]:
            setting, mode, ratio = str(t["setting"]), str(t["mode"]), _positive(t, "ratio")
            operator = f"{t['operator']} ({t['variant']})" if t["variant"] else str(t["operator"])
            low, high = t["quartiles"]
            numbers = [_scaled(time, 1e3, 3) for time in (low, t["median"], high, t.get("cold"))]
            memory = _scaled(t["peak_memory"] or None, 1e-6, 1)
            rows.append([operator, mode, str(t["shape"]), setting, instructions, *numbers, Number(ratio, 2), memory])
            if t["operator"] not in (BASE, COPY):
                by_setting.setdefault(setting, {}).setdefault(operator, {}).setdefault(mode, []).append(ratio)
        note = f"Large marks: geometric mean over the shapes. Small marks: each shape.{disturbed}"
        axis = f"time over PyTorch's {BASE}"
        for setting, by_row in by_setting.items():
            about = ", ".join(word for word in ("Operators", instructions, setting) if word)
            ratios.append(Ratios(about, note, axis, by_row))
    return ratios, Table("Operator times", columns, rows)


def _speeds(content: dict[str, Any]) -> tuple[list[Ratios], Table]:
    columns = ("model", "batch", "instructions", "train images/s", "x base", "eval images/s", "x base", "memory MB")
    rows: list[list[Value]] = []
    ratios = []
    settings = content["settings"]
    for instructions, disturbed, part in _parts(content):
        by_batch: dict[str, dict[str, dict[str, list[float]]]] = {}
        for s in part["speeds"]:
            batch = f"batches of {s.get('batch', settings.get('batch'))} at {s.get('size', settings.get('size'))}"
            numbers = [
                Number(_positive(s, f"{mode}_{name}"), digits)
                for mode in ("train", "eval")
                for name, digits in (("images_per_second", 1), ("ratio", 2))
            ]
            memory = _scaled(s["peak_memory"] or None, 1e-6, 0)
            rows.append([str(s["model"]), batch, instructions, *numbers, memory])
            by_model = by_batch.setdefault(batch, {})
            by_model[str(s["model"])] = {"training": [s["train_ratio"]], "evaluation": [s["eval_ratio"]]}
        note, axis = f"Random weights, offsets spread at random.{disturbed}", "images/s over the rigid base's"
        for batch, by_model in by_batch.items():
            about = ", ".join(str(word) for word in ("Models", batch, settings["precision"], instructions) if word)
            ratios.append(Ratios(about, note, axis, by_model))
    return ratios, Table("Model speeds", columns, rows)


def _rates(content: dict[str, Any]) -> tuple[list[Ratios], Table]:
    columns = ("source", "decoded", "size", "transform", "instructions", "images/s", "at the median")
    rows: list[list[Value]] = []
    for instructions, _, part in _parts(content):
        for r in part["rates"]:
            words = [str(r[name]) for name in ("source", "decoded", "size", "mode")]
            rows.append([*words, instructions, *(Number(_positive(r, n), 0) for n in ("images_per_second", "median"))])
    return [], Table("Images a second of the data loader, one process", columns, rows)


def _scaled(value: float | None, factor: float, digits: int) -> Number:
    return Number(None) if value is None else Number(factor * _positive({"time": value}, "time"), digits)


def _positive(numbers: dict[str, Any], name: str) -> float:
    value = numbers[name]
    if isinstance(value, int | float) and 0 < value < 1e30:
        return value
    raise UserError(f"{name} is {str(value)[:60]!r}, expected a positive number")
