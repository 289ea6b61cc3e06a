"""How a run begins: alone in its folder, under its old name, with the record of what is known before the first step."""

import dataclasses
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from dk_bench.data.shifts import TEST
from dk_bench.errors import BusyError, UserError
from dk_bench.processes.launched import LAUNCHER
from dk_bench.processes.launchers import announced_world
from dk_bench.processes.ranks import this_rank
from dk_bench.processes.world import own_process, own_world
from dk_bench.runs.identity import is_per_device
from dk_bench.runs.lock import hold
from dk_bench.runs.record import RunRecord, new_record, read_record
from dk_bench.training.checkpoint import LAST
from dk_bench.training.held_out import tell_other_tests, wants_test
from dk_bench.training.own_trainer import ConfiguredModule
from dk_bench.training.run_data import RunData
from dk_bench.training.task import Task
from dk_bench.training.wandb_tracking import in_wandb_sweep, tell_sweep
from dk_bench.training.wandb_twice import finished_in_sweep


@contextmanager
def open_run(task: Task) -> Iterator[RunRecord | None]:
    """Returns a run's record so far, if any. Until the block is left no other process opens the run: see `hold`, which
    raises BusyError. The further processes of a run belong to its first, which alone holds it and reads its record.

    Raises UserError for a record that cannot be read, or is of another task, and where a process of a launcher's sees
    another checkpoint than the first.
    """
    with own_process() as rank, own_world().met() as meeting:
        if meeting and rank.number:
            yield _as_told(task, meeting.agree(task.folder.name))
            return
        with nullcontext() if rank.number else _held(task.folder):
            record = _record_so_far(task)
            if meeting:
                told = {"record": _plain(record), "checkpoint": _size_of(task)}
                meeting.agree(task.folder.name, told)
            yield record


def _record_so_far(task: Task) -> RunRecord | None:
    path = task.folder / "record.json"
    try:
        record = read_record(path) if path.exists() else None
    except UserError as error:
        raise UserError(f"{error}; move it away, and the run goes on from its last checkpoint, if any") from error
    if record:
        task.check_own(record.task)
    return record


def _as_told(task: Task, told: Mapping[str, Any]) -> RunRecord | None:
    """Returns the record as the first process has read it; machines need not share the folder of a run that begins."""
    if (held := _size_of(task)) != told["checkpoint"]:
        here, there = ("no such file" if size is None else f"{size} bytes" for size in (held, told["checkpoint"]))
        found = f"{task.folder / LAST}: {here} here, {there} where the first process is"
        raise UserError(f"{found}: expected a folder that all machines share, as the run goes on from this checkpoint")
    return RunRecord(**told["record"]) if told["record"] else None


def _plain(record: RunRecord | None) -> dict[str, Any] | None:
    return dataclasses.asdict(record) if record else None


def _size_of(task: Task) -> int | None:
    path = task.folder / LAST
    return path.stat().st_size if path.exists() else None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        with hold(folder):
            yield
    except BusyError as error:
        if (world := announced_world()) and not this_rank().place:
            seen = f"({LAUNCHER}=torchrun or srun where that is not seen)"
            error.reason += f". {world}: expected one process, or ranks that torchrun or srun starts themselves {seen}"
        raise


def finished_before(task: Task, previous: RunRecord | None) -> RunRecord | None:
    """Returns the record of a run that is not to be trained: ``previous``, that of its folder, if it has finished and
    has its figures of test images, or that of another run of the sweep at W&B's server. Raises BusyError."""
    if previous and previous.status == "finished":
        return None if wants_test(task, previous) else previous
    meeting = own_world().meeting
    if meeting is None:
        return finished_in_sweep(task)
    found = meeting.share("finished", lambda: _plain(finished_in_sweep(task)))
    return RunRecord(**found) if found else None


def not_again(task: Task, record: RunRecord) -> RunRecord:
    """Says of a run that finished before that it is not repeated; a sweep of W&B's gets its metrics all the same."""
    if this_rank().number:
        return record
    print(f"{task.folder}: finished {record.ended}, not trained again", file=sys.stderr)
    if in_wandb_sweep():
        tell_sweep(task, record)
    tell_other_tests(task, record)
    return record


def name_run(folder: Path, checkpoint: Mapping[str, Any] | None, previous: RunRecord | None) -> str:
    """Returns the run's name for W&B: what it was called before, or a new one. The random part keeps apart runs of one
    cell on several machines that share a project."""
    if checkpoint:
        return checkpoint["hyper_parameters"]["run_id"]
    if previous:
        return previous.run_id
    cell, seed = folder.name.rsplit("-", 2)[1:]  # after the run's own name, which W&B might not take
    return f"{cell}-{seed}-{secrets.token_hex(4)}"


def start_record(
    task: Task,
    module: ConfiguredModule,
    data: RunData,
    command: Sequence[str],
    *,
    splits: Sequence[str] = ("train", "val", TEST),
    kind: str | None = None,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> RunRecord:
    """Returns the record of a run that begins, with the model's cost and what of ``data`` it is about. ``kind`` is the
    task in the record where it is not the run's own, ``earlier`` are the attempts before this one."""
    classes = list(module.hparams.classes)
    model = task.describe_model(classes)
    counts = _counts(data, splits)
    record = new_record(
        name=task.run.name,
        config=json.loads(json.dumps(task.values)),  # tuples as lists: the record in memory is the one read back
        model=model,
        data={"name": data.name, "classes": classes, **counts, "checksum": data.checksums(*splits)},
        seed=task.run.seed,
        command=command or sys.argv,
        run_id=module.hparams.run_id or None,
        task=kind or task.name,
        earlier=earlier,
    )
    if data.decoded is not None:  # filled in when they are: an image that cannot be read is a run's failure
        record.data["decoded"] = data.decoded
    record.cost = task.cost(module.model, model["input_size"])
    return record


def tell_devices(record: RunRecord) -> None:
    """Says of a run that goes on where that is on another number of devices, each of which has its own statistics."""
    if len(record.attempts) < 2 or not is_per_device(record.config):
        return
    then, now = (attempt["device"].get("devices") for attempt in record.attempts[-2:])
    if then not in (None, now):
        own = "each normalises by the statistics of its own images, so that figures are not those of either number"
        print(f"goes on with {now} device{'s' if now > 1 else ''}, before with {then}: {own}", file=sys.stderr)


def _counts(data: RunData, splits: Sequence[str]) -> dict[str, int | None]:
    """Tells how many images there are of the splits that a record is about, and, where folders and tars were scanned,
    how many service files and folders of theirs were passed over."""
    images = data.images(*splits)
    counts = {f"{split}_images": len(images[split]) if split in images else None for split in ("train", "val", TEST)}
    if counts["test_images"] is None:  # as in older records
        del counts["test_images"]
    left_out = [found.left_out for found in images.values() if hasattr(found, "left_out")]
    return counts | ({"left_out": sum(left_out)} if left_out else {})


def go_on_from(record: RunRecord, held: Mapping[str, Any]) -> None:
    """Puts a checkpoint's epochs, of `RunKeeper.state_in`, into the record before Lightning does: it may not get there.

    Raises UserError where the run had other images before, which an older checkpoint does not say; a run without a
    checkpoint begins anew, with whatever images.
    """
    now, then = record.data.get("checksum") or {}, held.get("checksum") or {}
    if other := [split for split in now if then.get(split, now[split]) != now[split]]:
        split = other[0]
        raise UserError(
            f"the {split} images are others than when this run began (checksum {now[split]}, then {then[split]}): "
            "expected the same images, or another output, in which the run begins anew"
        )
    record.metrics["epochs"] = list(held.get("epochs", []))
