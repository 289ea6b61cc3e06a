"""The README's figures of speed, as Markdown, from the records of `dk-bench bench` in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dk_bench.analysis.bench.calls import BASE, FORWARD, OURS, TORCHVISION, TRAIN, Setting
from dk_bench.analysis.bench.conclusions import sentences, worst_shape
from dk_bench.errors import UserError
from dk_bench.tables.render import Markup, Number, Table, Value, markdown_table, markdown_text

MODES = (FORWARD, TRAIN)
STORED = str(Setting())
INSTRUCTIONS = {"avx512": "AVX-512", "avx2": "AVX2"}

Part = dict[str, Any]


def speeds(folder: Path, link: str) -> str:
    """Tells what the records of operators, models and data in ``folder`` say; ``link`` is the folder as seen from the
    file that this goes into. Raises UserError for a file there that is none of these records."""
    kinds = (
        ("ops", "operator times", operator_speeds),
        ("train", "model speeds", model_speeds),
        ("data", "image rates", data_speeds),
    )
    return "\n\n".join(_section(folder, link, *kind) for kind in kinds)


def _section(folder: Path, link: str, what: str, kind: str, write: Callable[[dict[str, Any]], list[str]]) -> str:
    path, command = folder / f"{what}-cpu.json", f"`dk-bench bench {what} --output FILE`"
    if not path.exists():
        return f"No record of {kind} yet: {command} makes one."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != kind:
            raise ValueError(f"it is of {record['kind']}")
        return "\n\n".join([*write(record), _source(record, f"[{path.name}]({quote(link)}/{path.name})", command)])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no record of `dk-bench bench {what}`: {type(error).__name__}: {error}") from error


def _source(record: dict[str, Any], link: str, command: str) -> str:
    """Tells where the figures are from, and what is against them."""
    device, commit = record["device"], str(record["git"]["commit"])[:7]
    if record["git"]["dirty"]:
        commit += " with changes"
    threads = f"{device['threads']} thread{'s' * (device['threads'] != 1)}"
    made = f"From {link} ({markdown_text(device['name'])}, {threads}, commit {commit}), again by {command}."
    disturbed = "; ".join(sentences(record, "warnings"))
    return f"{made} The machine was not quiet: {markdown_text(disturbed)}." if disturbed else made


def _name(part: Part) -> str:
    return INSTRUCTIONS.get(part["instruction_set"], markdown_text(part["instruction_set"]))


def operator_speeds(record: dict[str, Any]) -> list[str]:
    """Ratios to PyTorch's depthwise convolution, and of 16-bit times to those in float32, by operator, mode and
    instruction set: words and a table."""
    parts = record["parts"]
    rows: list[list[Value]] = []
    for setting in dict.fromkeys(setting for part in parts for setting in part["geometric_means"]):
        if setting.startswith("float32"):
            rows += _rows(f"{setting}, over PyTorch's fastest {BASE}", setting, _ratio, parts)
    for setting in dict.fromkeys(setting for part in parts for setting in part["over_float32"]):
        rows += _rows(f"{setting}, over float32", setting, _over_float32, parts)
    columns = ("time of", "operator", *(f"{_name(part)}, {mode}" for part in parts for mode in MODES))
    shapes = ", ".join(f"{s['channels']} x {s['size']} x {s['size']}" for s in record["settings"]["shapes"])
    words = f"Operators: geometric mean over {shapes} (the largest ratio among them)."
    means = {_name(part): part["geometric_means"].get(STORED, {}).get(FORWARD, {}) for part in parts}
    faster = [f"{of[TORCHVISION] / of[OURS[1]]:.0f} ({name})" for name, of in means.items() if TORCHVISION in of]
    if faster:
        longer = f"takes {' and '.join(faster)} times as long as {OURS[1]}, {FORWARD}."
        words += f" Torchvision's deformable convolution {longer}"
    return [words, markdown_table(Table("", columns, rows))]


def _rows(
    about: str, setting: str, figure: Callable[[Part, str, str, str], str], parts: list[Part]
) -> list[list[Value]]:
    """Returns a row an operator; the first one says what they are about."""
    return [
        [
            "" if number else about,
            operator,
            *(Markup(figure(part, setting, operator, mode)) for part in parts for mode in MODES),
        ]
        for number, operator in enumerate(OURS)
    ]


def _ratio(part: Part, setting: str, operator: str, mode: str) -> str:
    mean = part["geometric_means"][setting][mode][operator]
    return f"{mean:.2f} ({worst_shape(part, setting, operator, mode)['ratio']:.2f})"


def _over_float32(part: Part, setting: str, operator: str, mode: str) -> str:
    return f"{part['over_float32'][setting][mode][operator]:.2f}"


def model_speeds(record: dict[str, Any]) -> list[str]:
    """Images per second and ratios to the rigid base, by model and instruction set: words and tables."""
    paragraphs = ["Models: images per second of training steps (forward, backward, SGD) and of evaluation."]
    for part in record["parts"]:
        rows: list[list[Value]] = []
        for s in part["speeds"]:
            batch = f"{s['batch']} at {s['size']}" if s["model"] == s["base"] else ""
            figures = [
                Number(s[f"{mode}_{name}"], digits)
                for mode in ("train", "eval")
                for name, digits in (("images_per_second", 0), ("ratio", 2))
            ]
            rows.append([batch, s["model"], *figures])
        columns = (f"{_name(part)}, batch", "model", "training", "x base", "evaluation", "x base")
        paragraphs.append(markdown_table(Table("", columns, rows)))
    return paragraphs


def data_speeds(record: dict[str, Any]) -> list[str]:
    """Images per second of the data loader, by source, where decoded images are kept, and size: words and tables."""
    words = "Data: images per second of the loader in one process, as training (train) and evaluation (eval) read them."
    several = len(record["parts"]) > 1
    return [words, *(_rates(part, f"{_name(part)}, images of" if several else "images of") for part in record["parts"])]


def _rates(part: Part, heading: str) -> str:
    rates: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
    for r in part["rates"]:
        rates.setdefault((r["source"], r["decoded"]), {})[r["size"], r["mode"]] = r["images_per_second"]
    given = sorted({key for by_key in rates.values() for key in by_key}, key=lambda key: (key[0], key[1] != "train"))
    columns = (heading, "decoded", *(f"{size} pixels, {mode}" for size, mode in given))
    rows: list[list[Value]] = [
        [*about, *(Number(by_key.get(key), 0) for key in given)] for about, by_key in rates.items()
    ]
    return markdown_table(Table("", columns, rows))
