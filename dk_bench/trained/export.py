"""Writes a trained model for other programs: a folder of one or more formats, with a model card and the run's record.

A format is a line of `FORMATS`: a function of a `Trained` and a folder, which writes its files there, returns their
names, and raises UserError with one sentence for what it cannot say. Formats import what they need when asked for.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import dk_bench
from dk_bench import tasks
from dk_bench.errors import UserError, some, system_errors
from dk_bench.files import folder_atomically, read_json, write_atomically
from dk_bench.runs.record import RunRecord, write_record
from dk_bench.trained import card
from dk_bench.trained.history import History, check_trained
from dk_bench.trained.load import Trained, open_trained

FORMATS = {
    "timm": "dk_bench.trained.timm_hub:write",
    "mmdet": "dk_bench.trained.mmdet_files:write",
    "onnx": "dk_bench.trained.graphs:write_onnx",
    "pt2": "dk_bench.trained.graphs:write_pt2",
}
GRAPHS = ("onnx", "pt2")  # whose heights and widths may be left open
CONTENTS, RECORD = "export.json", "record.json"  # what the folder holds, by which it is known as ours; the run's record
# Files that a repository may have of an earlier export, which tell of other weights than a new one's.
OURS = (CONTENTS, RECORD, "config.json", "model.safetensors", "config.py", "model.pth", "model.onnx", "model.pt2")


def export(
    path: str | Path,
    folder: str | Path,
    formats: Sequence[str] = (),
    *,
    unfinished: bool = False,
    licence: str | None = None,
    records: Iterable[RunRecord] = (),
    repository: str | None = None,
    any_size: bool = False,
) -> list[str]:
    """Writes the trained model at ``path``, see `dk_bench.load`, into ``folder`` and returns the names of its files.

    ``formats`` are names of `FORMATS`, by default the task's own. The folder is there whole or not at all; an older
    export is replaced. ``licence`` of the weights, by the hub's name for it, the ``repository`` they will be pushed to
    and ``records`` of further seeds are for the model card. ``any_size`` leaves height and width of graphs open.

    Raises UserError for what `dk_bench.load` does, the model of a run that diverged or, without ``unfinished``, that
    has not ended, a folder that holds other things, one that cannot be written, and what a format cannot say.
    """
    folder = Path(folder)
    check_target(folder)
    if any_size and not set(formats) & set(GRAPHS):
        raise UserError(f"--any-size: goes with --format {' or '.join(GRAPHS)}")
    trained = open_trained(path)
    formats = list(dict.fromkeys(formats or (tasks.KINDS[trained.task].format,)))
    _check_kept(trained, folder, formats)
    history = History.of(trained)
    check_trained(trained, history, unfinished=unfinished)
    written: dict[str, list[str]] = {}
    with system_errors(f"--to {folder}: cannot be written"), folder_atomically(folder) as new:
        for name in formats:
            written[name] = _writer(name)(trained, new, **{"free": True} if any_size and name in GRAPHS else {})
        about = card.About(trained, history, written, folder.resolve().name, repository, licence, records)
        write_atomically(new / card.NAME, card.text(about))
        names = [name for files in written.values() for name in files] + [card.NAME]
        if trained.record:
            names.append(write_record(trained.record, new / RECORD).name)
        write_atomically(new / CONTENTS, _contents(trained, written, names))
        _open_to_readers(new)
    return [*names, CONTENTS]


def check_target(folder: Path) -> None:
    """Raises UserError for a folder to export into that is a file, or holds more than an export of ours."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file, expected a folder")
    if not folder.is_dir():
        return
    # A folder is replaced by another one, which leaves a program that is in it nowhere, and cannot be a mount point.
    if Path.cwd().is_relative_to(folder.resolve()) or os.path.ismount(folder):
        where = "a mount point" if os.path.ismount(folder) else "the folder that you are in"
        raise UserError(f"--to {folder}: is {where}, which cannot be replaced; expected one in it")
    held = {path.name for path in folder.iterdir()}
    content = read_json(folder / CONTENTS) if CONTENTS in held else {}
    known = content.get("files") if isinstance(content, dict) else None
    if others := sorted(held - {CONTENTS} - set(map(str, known if isinstance(known, list) else ()))):
        raise UserError(f"--to {folder}: holds {some(others)}; expected a new folder, an empty one or an older export")


def _check_kept(trained: Trained, folder: Path, formats: Sequence[str]) -> None:
    """Raises UserError where the folder holds the very model, and nothing that is written could be loaded again."""
    own, opened = tasks.KINDS[trained.task].format, trained.path.resolve()
    if own not in formats and opened.is_relative_to(folder.resolve()):
        expected = f"expected another folder, or --format {' '.join((own, *formats))}"
        raise UserError(f"--to {folder}: holds the model itself, which would be lost; {expected}")


def _writer(name: str) -> Callable[..., list[str]]:
    """Imports what writes a format. Raises UserError for a format that there is not."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: expected {', '.join(FORMATS)}")
    module, _, function = FORMATS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def _open_to_readers(folder: Path) -> None:
    """Gives all files of a folder the permissions of new ones: some libraries keep theirs from everybody else."""
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


def _contents(trained: Trained, written: dict[str, list[str]], names: list[str]) -> str:
    content = {
        "dk_bench": dk_bench.__version__,
        "task": trained.task,
        "classes": trained.classes,
        "formats": written,
        "files": names,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
