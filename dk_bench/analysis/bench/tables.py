"""Records of ``dk-bench bench`` as tables: all that a terminal shows, and those that the README has too."""

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

from dk_bench.analysis.bench.calls import BASE, COPY, FORWARD, OURS, TRAIN, Setting
from dk_bench.analysis.bench.timings import base_of, sentences, verdict, worst_shape
from dk_bench.tables.entries import Markup, Number, Value
from dk_bench.tables.render import markdown_text
from dk_bench.tables.table import Column, Document, Table, make_table

MODES = (FORWARD, TRAIN)
STORED, DEPTHWISE = str(Setting()), "depthwise"
INSTRUCTIONS = {"avx512": "AVX-512", "avx2": "AVX2"}

Part = dict[str, Any]  # of a record: what was measured under one instruction set
Record = dict[str, Any]


def document(record: Record) -> Document:
    """Returns all tables of a record, the means and conclusions in words, and what disturbed."""
    device = f"{record['device']['name']}, {record['device'].get('threads', 1)} CPU thread(s)"
    kinds = {"operator times": _operators, "model speeds": _models, "image rates": _rates}
    title, tables, notes = kinds[record["kind"]](record)
    warnings = _lines("The machine was not quiet:", sentences(record, "warnings"))
    return Document("bench", f"{device}, {title}", notes + warnings, tables)


def _operators(record: Record) -> tuple[str, list[Table], list[str]]:
    tables, overhead = [], []
    targets, bound = record["settings"].get("targets"), record["settings"].get("memory_bound")
    if targets:
        tables.append(target_table(record["parts"], targets))
    if bound:
        tables.append(memory_table(record["parts"], bound))
    for part in record["parts"]:
        tables += [_timing_table(part, setting) for setting in dict.fromkeys(t["setting"] for t in part["timings"])]
        name = part["instruction_set"]
        overhead += [f"{name}, {call}: {1e6 * seconds:.1f}" for call, seconds in part["host_overhead"].items()]
    notes = _lines("Geometric means over the shapes, warm:", sentences(record, "conclusions"))
    title = f"{record['settings'].get('of', DEPTHWISE)} operators,"
    return title, tables, notes + _lines("Host's microseconds a call of a tiny operand:", overhead)


def _models(record: Record) -> tuple[str, list[Table], list[str]]:
    return f"{record['settings']['precision']}, random weights,", list(map(model_table, record["parts"])), []


def _rates(record: Record) -> tuple[str, list[Table], list[str]]:
    tables = [rate_table(part, f"{name_of(part)}, images of") for part in record["parts"]]
    openings = []
    for o in (o for part in record["parts"] for o in part["openings"]):
        told = {
            "decoded": o["first_seconds"],
            "opened again": o["again_seconds"],
            "samples found": o.get("index_seconds"),
            "found again": o.get("index_again_seconds"),
        }
        width, height = o["pixels"]
        if said := [f"{what} {seconds:.2f}" for what, seconds in told.items() if seconds is not None]:
            openings.append(f"{o['source']}, {o['images']} of {width} x {height}: {', '.join(said)}")
    title = f"images a second, batches of {record['settings']['batch']},"
    return title, tables, _lines("Seconds until all images were", openings)


def _lines(title: str, lines: Iterable[str]) -> list[str]:
    lines = [f"\n  {line}" for line in lines]
    return [title + "".join(lines)] if lines else []


def name_of(part: Part) -> str:
    """Returns the name of a part's instruction set."""
    return INSTRUCTIONS.get(part["instruction_set"], markdown_text(part["instruction_set"]))


def _number(name: str, digits: int, factor: float = 1.0) -> Callable[[dict[str, Any]], Number]:
    def number(row: dict[str, Any]) -> Number:
        value = row.get(name)
        return Number(None if value is None else factor * value, digits)

    return number


def _timing_table(part: Part, setting: str) -> Table:
    """Returns every timing of one setting."""
    columns = [
        Column("C x H x W", itemgetter("shape")),
        Column("operator", lambda t: f"{t['operator']} ({t['variant']})" if t["variant"] else t["operator"]),
        Column("mode", itemgetter("mode")),
        Column("warm ms", _number("seconds", 3, 1e3)),
        Column("median ms", _number("median", 3, 1e3)),
        Column("cold ms", _number("cold", 3, 1e3)),
        Column("x PyTorch's", _number("ratio", 2)),
        Column("x float32", _number("over_float32", 2)),
        Column("x copy's rate", _number("copy_share", 2)),
        Column("memory MB", _number("peak_memory", 1, 1e-6)),
    ]
    timings = [timing for timing in part["timings"] if timing["setting"] == setting]
    return make_table(f"{part['instruction_set']}, {setting}", columns, timings, section=itemgetter("shape"))


def mean_table(parts: list[Part]) -> Table:
    """Returns ratios to PyTorch's depthwise convolution and to float32, by operator, mode and instruction set."""
    rows: list[list[Value]] = []
    for name, words in (("geometric_means", f"over PyTorch's fastest {BASE}"), ("over_float32", "over float32")):
        for setting in dict.fromkeys(setting for part in parts for setting in part[name]):
            if name == "over_float32" or setting.startswith("float32"):
                for operator in OURS:
                    head = f"{setting}, {words}" if operator == OURS[0] else ""
                    figures = (_mean(part, name, setting, operator, mode) for part in parts for mode in MODES)
                    rows.append([head, operator, *figures])
    columns = ("time of", "operator", *(f"{name_of(part)}, {mode}" for part in parts for mode in MODES))
    return Table("", columns, rows)


def _mean(part: Part, name: str, setting: str, operator: str, mode: str) -> Markup:
    """Returns a mean over shapes, with the largest ratio among them where it is of ratios."""
    mean = f"{part[name][setting][mode][operator]:.2f}"
    if name == "over_float32":
        return Markup(mean)
    return Markup(f"{mean} ({worst_shape(part, setting, operator, mode)['ratio']:.2f})")


def target_table(parts: list[Part], targets: dict[str, dict[str, float]]) -> Table:
    """Returns ratios to PyTorch's convolution, of an unfolding to PyTorch's, and whether they are at the operator's
    target at most."""

    def told(t: dict[str, Any]) -> str:
        return f"{t['ratio']:.2f}{verdict(t['ratio'], targets.get(t['operator'], {}).get(t['mode']))}"

    def timings(part: Part) -> Iterator[dict[str, Any]]:
        return (t for t in part["timings"] if t["setting"] == STORED and t["operator"] not in (base_of(t), COPY))

    return _by_mode("times over PyTorch's", parts, {"C x H x W": "shape", "operator": "operator"}, timings, told)


def memory_table(parts: list[Part], bound: int) -> Table:
    """Returns the MB that operators with a bound hold beyond their operands, and whether these are at most the bound
    and the results."""

    def told(held: dict[str, Any]) -> str:
        most = (bound + held["results"]) / 1e6
        return "-" if held["peak"] is None else f"{held['peak'] / 1e6:.1f}{verdict(held['peak'] / 1e6, most)}"

    about = {"C x H x W": "shape", "images": "batch", "operator": "operator"}
    return _by_mode("memory beyond operands, MB", parts, about, itemgetter("memory"), told)


def _by_mode(
    heading: str,
    parts: list[Part],
    about: dict[str, str],
    rows_of: Callable[[Part], Iterable[dict[str, Any]]],
    told: Callable[[dict[str, Any]], str],
) -> Table:
    """Returns a table of what is told of rows of parts, by what they are about, whose keys go by the columns' names;
    each mode of each instruction set has a column."""
    columns = [(part["instruction_set"], mode) for part in parts for mode in MODES]
    cells: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for part in parts:
        for row in rows_of(part):
            cell = cells.setdefault(tuple(str(row[key]) for key in about.values()), {})
            cell[part["instruction_set"], row["mode"]] = told(row)
    heads = [f"{name_of(part)}, {mode}" for part in parts for mode in MODES]
    rows = [[*key, *(cell.get(each, "-") for each in columns)] for key, cell in cells.items()]
    return Table(heading, (*about, *heads), rows)


def model_table(part: Part) -> Table:
    """Returns images per second and ratios to the rigid base, by model."""
    columns = [
        Column(f"{name_of(part)}, batch", lambda s: f"{s['batch']} at {s['size']}" if s["model"] == s["base"] else ""),
        Column("model", itemgetter("model")),
        Column("training", _number("train_images_per_second", 0)),
        Column("x base", _number("train_ratio", 2)),
        Column("evaluation", _number("eval_images_per_second", 0)),
        Column("x base", _number("eval_ratio", 2)),
        Column("memory MB", _number("peak_memory", 0, 1e-6), when=lambda of: any(n.value is not None for n in of)),
    ]
    return make_table("", columns, part["speeds"])


def rate_table(part: Part, heading: str) -> Table:
    """Returns images per second of the data loader, by source, where decoded images are kept, number of workers (where
    there are any), size and transform."""
    has_workers = any(r.get("workers") for r in part["rates"])
    rates: dict[tuple[str, ...], dict[tuple[int, str], float]] = {}
    for r in part["rates"]:
        about = (r["source"], r["decoded"], *([str(r["workers"])] if has_workers else []))
        rates.setdefault(about, {})[r["size"], r["mode"]] = r["images_per_second"]
    given = sorted({key for by_key in rates.values() for key in by_key}, key=lambda key: (key[0], key[1] != "train"))
    columns = (
        heading,
        "decoded",
        *(["workers"] if has_workers else []),
        *(f"{size} pixels, {mode}" for size, mode in given),
    )
    rows = [[*about, *(Number(by_key.get(key), 0) for key in given)] for about, by_key in rates.items()]
    return Table("", columns, rows)
