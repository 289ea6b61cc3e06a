"""The checkpoints that a study of models looks at: files, and those of runs below folders, chosen by ``--only``."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dk_bench.config import Config
from dk_bench.errors import UserError, located
from dk_bench.reading.overrides import joined, split_override, standing
from dk_bench.reading.schema import read_value
from dk_bench.runs.identity import DEFAULTS
from dk_bench.runs.record import TRAINING, RunRecord, find_records, read_record

CHOICE = re.compile(r"\s*([^,\[\]\s]+)\s*(?:\[([^\[\]]+)\])?\s*(?:,(?=.)|$)")


@dataclass(frozen=True)
class Choice:
    """Runs that ``--only`` names: by their model and, where several have it, by settings, as ``a[optim.lr=0.1]``."""

    model: str
    settings: str = ""  # KEY=VALUE, with commas between several

    def __str__(self) -> str:
        return self.model + f"[{self.settings}]" * bool(self.settings)

    def includes(self, run: RunRecord) -> bool:
        """Tells whether a run is one of them. Raises UserError for a key that no configuration has, or what it cannot
        be; a record from before a key has its default."""
        with located(f"--only {self}"):
            asked = [split_override(text.strip()) for text in self.settings.split(",")] if self.settings else []
            wanted = [(key, read_value(Config, key, text)) for key, text in asked]
        return run.model["name"] == self.model and all(
            standing(run.config, key, DEFAULTS.get(joined(key))) == value for key, value in wanted
        )


def checkpoints_below(paths: Iterable[str], only: str | None) -> list[str]:
    """Returns paths, in a folder's place last.ckpt of the finished classification runs below it, by model and seed.
    Raises UserError for a folder without such runs, a choice in ``only`` that fits none, and one without a folder."""
    choices = _choices(only) if only else []
    paths, found = list(paths), []
    if choices and not any(Path(path).is_dir() for path in paths):
        raise UserError(f"--only {only}: goes with a folder of runs")
    for path in paths:
        found += _finished(path, choices) if Path(path).is_dir() else [path]
    return found


def _choices(only: str) -> list[Choice]:
    choices, at = [], 0
    while at < len(only):
        found = CHOICE.match(only, at)
        if not found:
            raise UserError(
                f"--only {only}: expected models, with settings where several have a name: a,b[optim.lr=1,seed=0]"
            )
        choices.append(Choice(found[1], (found[2] or "").strip()))
        at = found.end()
    return choices


def _finished(folder: str, choices: Sequence[Choice]) -> list[str]:
    """Returns last.ckpt of the finished runs below a folder: of all by name and seed, or as chosen, in that order."""
    files = [file for file in find_records(folder) if file.with_name("last.ckpt").is_file()]
    runs = [(read_record(file), str(file.with_name("last.ckpt"))) for file in files]
    runs = [(run, path) for run, path in runs if run.task == TRAINING and run.status == "finished"]
    runs.sort(key=lambda each: (each[0].model["name"], each[0].seed, each[1]))
    chosen = [[path for run, path in runs if choice.includes(run)] for choice in choices]
    if missing := [str(choice) for choice, paths in zip(choices, chosen, strict=True) if not paths]:
        raise UserError(f"{folder}: no finished run of {', '.join(missing)} with its last.ckpt")
    if not runs:
        raise UserError(f"{folder}: no finished run with its last.ckpt")
    return list(dict.fromkeys(path for paths in chosen for path in paths)) or [path for _, path in runs]
