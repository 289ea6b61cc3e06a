"""A run once more: the command that its record holds, what differs here and now, and whether its metrics came out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dk_bench import tasks
from dk_bench.errors import UserError
from dk_bench.reading.overrides import split_override
from dk_bench.runs.environment import collect_git, collect_versions, portable
from dk_bench.runs.hardware import collect_hardware
from dk_bench.runs.identity import DEFAULTS, cell_settings, config_hash
from dk_bench.runs.record import TRAINING, RunRecord, attempts_of, find_records, read_record

SHORTENED = ".../"  # how `portable` begins a path that lay elsewhere
GIT = {"commit": "commit", "dirty": "uncommitted changes"}
DEVICE = ("type", "name", "threads")
ADDED_TO_DEVICE = ("operators",)  # which older records do not tell, nor what each library chose
CHOSEN = {"instruction_sets": "instruction set of {}", "cuda": "CUDA: {}"}
TIMES = ("seconds",)  # of an epoch; no two runs take the same


@dataclass(frozen=True)
class Then:
    """One circumstance of a run, such as a version: what it was, and what it is here and now, in words. ``matters``:
    the same run needs the same."""

    name: str
    then: str
    now: str
    matters: bool = True

    @property
    def differs(self) -> bool:
        return self.then != self.now


def replay_command(
    record: RunRecord, output: str | Path, config: str | None = None, overrides: Iterable[str] = ()
) -> list[str]:
    """Returns the record's command, with its runs going to ``output``, which is no part of what it computes.

    ``config`` takes the place of the configuration file, ``overrides`` (key=value) that of the command's for the same
    key: for what lies elsewhere on this machine. Raises UserError for a command that is no ``dk-bench train``, and
    where a path that the record shortened is not given anew.
    """
    head, arguments = record.command[:2], record.command[2:]
    if head != ["dk-bench", "train"] or not arguments:
        raise UserError(f"its command is {' '.join(record.command) or 'not known'!r}, expected `dk-bench train CONFIG`")
    overrides = [*overrides, f"output={output}"]
    if len([override for override in overrides if override.startswith("output=")]) > 1:
        raise UserError(f"{overrides[0]}: a replay goes to another folder, which --output names")
    given = {_place(override) for override in overrides}
    kept = [argument for argument in arguments[1:] if _place(argument) not in given]
    for argument in kept:
        if SHORTENED in argument:
            raise UserError(f"{argument}: the record holds the end of that path alone; give it as KEY=VALUE")
    if config is None and arguments[0].startswith(SHORTENED):
        raise UserError(f"{arguments[0]}: the record holds the end of that path alone; give --config FILE")
    return [*head, config or arguments[0], *kept, *overrides]


def _place(override: str) -> tuple[str, ...]:
    """Returns the place that an override names: a[0] and a.0 are one."""
    return tuple(map(str, split_override(override)[0]))


def resolve(command: list[str], of: str = TRAINING) -> dict[str, Any]:
    """Returns the configuration, plain data, of ``dk-bench train CONFIG key=value...`` today. Raises UserError, also
    where it is not ``of`` the task that the record is of."""
    _, _, config, *overrides = command
    task = tasks.load(config, overrides)
    if task.name != of:
        raise UserError(f"{config}: a configuration of {task.name}, expected one of {of}, as the record is")
    return portable(task.values, distinct=True)


def compare_making(record: RunRecord, config: Mapping[str, Any] | None) -> list[Then]:
    """Compares commit, changes, versions and device then and now, and the settings; ``config`` is today's, if known.
    The device does not matter: that a run comes out the same on another may be what a replay is to show. Nor does our
    own version: a checkout has that of the commit which it was installed at, and may have moved on since."""
    git, versions, device = collect_git(), collect_versions(), collect_hardware()
    making = [Then(name, _word(record.git.get(key)), _word(git[key])) for key, name in GIT.items()]
    for name, version in record.versions.items():
        making.append(Then(name, version, versions.get(name, "none"), matters=name != "dk_bench"))
    keys = [*DEVICE, *(key for key in ADDED_TO_DEVICE if key in record.device)]
    making += [Then(f"device: {key}", _word(record.device.get(key)), _word(device[key]), False) for key in keys]
    making += compare_rounding(record.device, device)
    return making + (_settings(record.config, config) if config is not None else [])


def compare_rounding(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Then]:
    """Compares what decides how numbers are rounded, of two devices as records hold them: the instruction set that each
    library chose, and how CUDA is set. Nothing where the first is an older record's, which does not tell."""
    return [
        Then(name.format(key), _word(value), _word((now.get(part) or {}).get(key)), False)
        for part, name in CHOSEN.items()
        for key, value in (then.get(part) or {}).items()
    ]


def faults(record: RunRecord, making: Iterable[Then]) -> list[str]:
    """Tells why a replay would not be of the same run, in words; empty where nothing speaks against it."""
    words = [f"{item.name}: {item.then} then, {item.now} now" for item in making if item.matters and item.differs]
    code = [attempt["git"] for attempt in attempts_of(record)]
    if any(git.get("dirty") for git in code):
        words.append("its code had changes that no commit holds")
    if not all(git.get("commit") for git in code):
        words.append("nobody knows the commit of its code")
    elif len({git["commit"] for git in code}) > 1:
        words.append("it was resumed under another commit")
    return words


def compare_metrics(record: RunRecord, replayed: RunRecord) -> tuple[int, list[str]]:
    """Tells how many figures of the record were compared, and which came out otherwise, in words. All of them, to the
    last bit, but for times: those of every epoch, and the final ones."""
    compared, words = 0, []
    again = {epoch.get("epoch"): epoch for epoch in replayed.metrics["epochs"]}
    parts = [(f"epoch {e.get('epoch')}", e, again.get(e.get("epoch"), {})) for e in record.metrics["epochs"]]
    for name, then, now in [*parts, ("final", record.metrics["final"], replayed.metrics["final"])]:
        for key in (key for key in then if key not in TIMES):
            compared += 1
            if then[key] != now.get(key):
                words.append(f"{name}: {key} {then[key]} then, {now.get(key)} now")
    return compared, words


def replayed_below(
    folder: Path, record: RunRecord, path: Path, config: Mapping[str, Any]
) -> tuple[Path, RunRecord] | None:
    """Returns the replay of a record, by ``config``, that a folder holds, with its file; None where it holds no record.
    Raises UserError where it holds others, or the record itself, which lies at ``path``."""
    found = [(place, read_record(place)) for place in find_records([folder])] if folder.exists() else []
    for place, other in found:
        if place.resolve() == path.resolve() or other.run_id == record.run_id:
            raise UserError(f"{place}: the run itself, which a replay leaves alone; expected another --output")
        its = (other.task, config_hash(other.config), other.seed)
        if its != (record.task, config_hash(config), config["seed"]) or len(found) > 1:
            raise UserError(f"{place}: another run; expected an --output without runs")
    return found[0] if found else None


def _settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Then]:
    """Returns the settings in which two configurations differ, of those that make a cell, and the seed."""
    ours, today = ({**cell_settings(config), "seed": config.get("seed")} for config in (then, now))
    both = ((key, *(cell.get(key, DEFAULTS.get(key)) for cell in (ours, today))) for key in {**ours, **today})
    return [Then(key, str(was), str(is_now)) for key, was, is_now in both if was != is_now]


def _word(value: object) -> str:
    return "unknown" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)
