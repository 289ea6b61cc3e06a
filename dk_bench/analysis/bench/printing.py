"""Prints records of `dk-bench bench` on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from dk_bench.analysis.bench.conclusions import sentences
from dk_bench.tables.terminal import print_table


def print_operators(record: dict[str, Any], console: Console) -> None:
    """Returns every timing, by instruction set and setting; the means in words, and what disturbed."""
    for part in record["parts"]:
        for setting in dict.fromkeys(t["setting"] for t in part["timings"]):
            _print_setting(record, part, setting, console)
    _print_lines(console, "Geometric means over the shapes, warm:", sentences(record, "conclusions"))
    overhead = [
        f"{part['instruction_set']}, {call}: {1e6 * seconds:.1f}"
        for part in record["parts"]
        for call, seconds in part["host_overhead"].items()
    ]
    _print_lines(console, "Host's microseconds a call of a tiny operand:", overhead)
    print_warnings(record, console)


def _print_setting(record: dict[str, Any], part: dict[str, Any], setting: str, console: Console) -> None:
    names = ("C x H x W", "operator", "mode")
    figures = ("warm ms", "median ms", "cold ms", "x depthwise", "x float32", "x copy's rate", "memory MB")
    rows: list[tuple[str, ...] | None] = []
    previous = None
    for t in part["timings"]:
        if t["setting"] != setting:
            continue
        if previous not in (None, t["shape"]):
            rows.append(None)
        previous = t["shape"]
        operator = f"{t['operator']} ({t['variant']})" if t["variant"] else t["operator"]
        times = [_number(t[name], 3, 1e3) for name in ("seconds", "median", "cold")]
        ratios = [_number(t[name], 2) for name in ("ratio", "over_float32", "copy_share")]
        rows.append((t["shape"], operator, t["mode"], *times, *ratios, _number(t["peak_memory"], 1, 1e-6)))
    device = record["device"]
    title = f"{device['name']}, {part['instruction_set']}, {device['threads']} CPU thread(s), {setting}"
    print_table(console, title, (*names, *figures), rows, names=range(len(names)))


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _print_lines(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(title)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def print_warnings(record: dict[str, Any], console: Console) -> None:
    """Tells what says that the machine was not quiet; nothing if it was."""
    _print_lines(console, "The machine was not quiet:", sentences(record, "warnings"))


def print_speeds(record: dict[str, Any], console: Console) -> None:
    """Images per second of every model, by instruction set, base and batch."""
    columns = ("model", "train images/s", "x base", "eval images/s", "x base", "memory MB")
    for part in record["parts"]:
        batches: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for s in part["speeds"]:
            batches.setdefault((s["batch"], s["size"]), []).append(s)
        for (batch, size), speeds in batches.items():
            rows = [(s["model"], *_speed(s), _number(s["peak_memory"], 0, 1e-6)) for s in speeds]
            about = f"{record['device']['name']}, {part['instruction_set']}, {record['settings']['precision']}"
            print_table(console, f"{about}, batches of {batch} at {size}, random weights", columns, rows)
    print_warnings(record, console)


def _speed(speed: dict[str, Any]) -> list[str]:
    return [
        _number(speed[f"{mode}_{name}"], digits)
        for mode in ("train", "eval")
        for name, digits in (("images_per_second", 1), ("ratio", 2))
    ]


def print_rates(record: dict[str, Any], console: Console) -> None:
    """Images per second of the data loader, training and evaluation side by side, and what decoding once took."""
    columns = ("source", "decoded", "size", "train images/s", "eval images/s")
    for part in record["parts"]:
        rows: dict[tuple[str, str, str], dict[str, float]] = {}
        for r in part["rates"]:
            rows.setdefault((r["source"], r["decoded"], str(r["size"])), {})[r["mode"]] = r["images_per_second"]
        about = f"{record['device']['name']}, {part['instruction_set']}"
        title = f"{about}, one process, batches of {record['settings']['batch']}"
        cells = [(*key, *(f"{rates[mode]:,.0f}" for mode in ("train", "eval"))) for key, rates in rows.items()]
        print_table(console, title, columns, cells, names=range(2))
    lines = [
        f"{o['source']}, {o['images']} of {o['pixels'][0]} x {o['pixels'][1]}: {o['first_seconds']:.2f}"
        + ("" if o["again_seconds"] is None else f", opened again {o['again_seconds']:.2f}")
        for part in record["parts"]
        for o in part["openings"]
    ]
    _print_lines(console, "Seconds to decode all images once:", lines)
    print_warnings(record, console)
