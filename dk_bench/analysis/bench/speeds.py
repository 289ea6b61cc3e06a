"""The README's figures of speed, as Markdown, from the records of `dk-bench bench` in a folder."""

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

from dk_bench.analysis.bench.calls import FORWARD, OURS, TORCHVISION
from dk_bench.analysis.bench.dense_calls import UNFOLD
from dk_bench.analysis.bench.loader import options
from dk_bench.analysis.bench.tables import (
    STORED,
    Record,
    mean_table,
    memory_table,
    model_table,
    name_of,
    rate_table,
    target_table,
)
from dk_bench.analysis.bench.timings import base_of, sentences
from dk_bench.errors import UserError
from dk_bench.tables.render import markdown_table, markdown_text


def speeds(folder: Path, link: str) -> str:
    """Tells what the records of operators, models and data in ``folder`` say; ``link`` is the folder as seen from the
    file that this goes into. Raises UserError for a file there that is none of these records."""
    kinds = (
        ("ops", "ops", "operator times", operator_speeds),
        ("dense", "ops --of dense", "operator times", dense_speeds),
        ("pointwise", "ops --of pointwise", "operator times", dense_speeds),
        ("train", "train", "model speeds", model_speeds),
        ("data", "data", "image rates", data_speeds),
    )
    return "\n\n".join(_section(folder, link, *kind) for kind in kinds)


def _section(folder: Path, link: str, name: str, what: str, kind: str, write: Callable[[Record], list[str]]) -> str:
    path, command = folder / f"{name}-cpu.json", f"dk-bench bench {what}"
    if not path.exists():
        return f"No record of {kind} yet: `{command} --output FILE` makes one."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != kind:
            raise ValueError(f"it is of {record['kind']}")
        tables = write(record)
        if what == "data":
            command = f"{command} {options(record['settings'])}".rstrip()
        source = _source(record, f"[{path.name}]({quote(link)}/{path.name})", f"`{command} --output FILE`")
        return "\n\n".join([*tables, source])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no record of `{command}`: {type(error).__name__}: {error}") from error


def _source(record: Record, link: str, command: str) -> str:
    """Tells where the figures are from, and what is against them."""
    device, commit = record["device"], str(record["git"]["commit"])[:7]
    if record["git"]["dirty"]:
        commit += " with changes"
    threads = f"{device['threads']} thread{'s' * (device['threads'] != 1)}"
    made = f"From {link} ({markdown_text(device['name'])}, {threads}, commit {commit}), again by {command}."
    disturbed = "; ".join(sentences(record, "warnings"))
    return f"{made} The machine was not quiet: {markdown_text(disturbed)}." if disturbed else made


def operator_speeds(record: Record) -> list[str]:
    """Says what operators take beside PyTorch's, in words and a table."""
    parts = record["parts"]
    shapes = ", ".join(f"{s['channels']} x {s['size']} x {s['size']}" for s in record["settings"]["shapes"])
    words = f"Operators: geometric mean over {shapes} (the largest ratio among them)."
    means = {name_of(part): part["geometric_means"].get(STORED, {}).get(FORWARD, {}) for part in parts}
    faster = [f"{of[TORCHVISION] / of[OURS[1]]:.0f} ({name})" for name, of in means.items() if TORCHVISION in of]
    if faster:
        longer = f"takes {' and '.join(faster)} times as long as {OURS[1]}, {FORWARD}."
        words += f" Torchvision's deformable convolution {longer}"
    return [words, markdown_table(mean_table(parts))]


def dense_speeds(record: Record) -> list[str]:
    """Says what operators in place of dense convolutions take, time and memory, in words and tables."""
    parts, about = record["parts"], record["settings"]
    size, scope = (f"{about[name]}x{about[name]}" for name in ("kernel_size", "scope"))
    batch = " or ".join(str(n) for n in dict.fromkeys(shape["batch"] for shape in about["shapes"]))
    unfolds = any(base_of(timing) == UNFOLD for part in parts for timing in part["timings"])
    words = (
        f"Dense operators, {size} taps in a scope of {scope}: time over PyTorch's fastest convolution"
        f"{f', of an unfolding over {UNFOLD}' * unfolds}; batches of {batch}, {STORED}."
    )
    memory = (
        "Their memory beyond the operands, MB, with many images; at most the bound, "
        f"{about['memory_bound'] / 1e6:.1f}, and the results."
    )
    many = [part | {"memory": _of_most_images(part["memory"])} for part in parts]
    tables = target_table(parts, about["targets"]), memory_table(many, about["memory_bound"])
    return [words, markdown_table(tables[0]), memory, markdown_table(tables[1])]


def _of_most_images(held: list[Record]) -> list[Record]:
    """Returns the rows of the largest number of images, of each shape and operator."""
    most = {(row["shape"], row["operator"], row["mode"]): row["batch"] for row in sorted(held, key=itemgetter("batch"))}
    return [row for row in held if row["batch"] == most[row["shape"], row["operator"], row["mode"]]]


def model_speeds(record: Record) -> list[str]:
    """Says how many images per second models take, in words and tables."""
    words = "Models: images per second of training steps (forward, backward, SGD) and of evaluation."
    return [words, *map(markdown_table, map(model_table, record["parts"]))]


def data_speeds(record: Record) -> list[str]:
    """Says how many images per second the data loader gives, in words and tables."""
    alone = not any(rate.get("workers") for part in record["parts"] for rate in part["rates"])
    where = "in one process" if alone else "in one process (workers 0) or by so many workers"
    words = f"Data: images per second of the loader {where}, as training (train) and evaluation (eval) read them."
    several = len(record["parts"]) > 1
    headings = [(part, f"{name_of(part)}, images of" if several else "images of") for part in record["parts"]]
    return [words, *(markdown_table(rate_table(part, heading)) for part, heading in headings)]
