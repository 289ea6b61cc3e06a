"""mmengine's loops of training, of epochs or of iterations, as Lightning's epochs.

A loop of iterations has no epochs. Under Lightning, in records and in tables an epoch of it is what lies between two
places where mmengine would validate.
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from dk_bench.errors import UserError

EPOCHS, ITERATIONS = "EpochBasedTrainLoop", "IterBasedTrainLoop"
LENGTHS = {EPOCHS: "max_epochs", ITERATIONS: "max_iters"}
INTERVALS = {EPOCHS: 1, ITERATIONS: 1000}  # mmengine's val_interval where none is given


@dataclass(frozen=True)
class Loop:
    """Says how long ``train_cfg`` trains and when it validates, in its own unit: epochs or iterations.

    Attributes:
        by_iterations: the unit. An iteration is a batch.
        length: of training.
        interval: validation follows every so many.
        begin: the first of which validation follows.
        changes: pairs (milestone, interval), rising: the interval from there on, ``dynamic_intervals``.
    """

    by_iterations: bool
    length: int
    interval: int
    begin: int
    changes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Reads ``train_cfg``. Raises UserError for what is no loop of mmengine's."""
        kind = _kind(settings)
        known = ("type", "by_epoch", LENGTHS[kind], "val_interval", "val_begin", "dynamic_intervals")
        if unknown := sorted(set(settings) - {*known, "_scope_"}):  # mmengine marks so what comes from mmdet's files
            raise UserError(f"unknown key 'train_cfg.{unknown[0]}', expected {', '.join(known)}")
        counts = {LENGTHS[kind]: None, "val_interval": INTERVALS[kind], "val_begin": 1}
        counts = {key: settings.get(key, default) for key, default in counts.items()}
        for key, value in counts.items():
            if not _is_count(value):
                raise UserError("expected an integer of at least 1", key=f"train_cfg.{key}", value=value)
        changes = settings.get("dynamic_intervals") or ()
        if not _are_changes(changes):
            expected = "expected pairs (milestone, interval) of integers, milestones rising from 1"
            raise UserError(expected, key="train_cfg.dynamic_intervals", value=changes)
        return cls(kind == ITERATIONS, *counts.values(), tuple(map(tuple, changes)))

    def validates(self, done: int) -> bool:
        """Tells whether mmengine validates after so many epochs or iterations."""
        return done >= self.begin and self._is_place(done)

    def validates_after(self, epoch: int) -> bool:
        """Tells the same of an epoch of Lightning's, counted from 0."""
        return self.validates(self.ends[epoch] if self.by_iterations else epoch + 1)

    @property
    def key(self) -> str:
        """Names what gives `epochs`."""
        return "train_cfg.max_iters / val_interval" if self.by_iterations else "train_cfg.max_epochs"

    @property
    def epochs(self) -> int:
        """Counts Lightning's epochs."""
        return len(self.ends) if self.by_iterations else self.length

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tells after how many iterations the epochs of a loop of iterations end."""
        begins = [1, *(min(max(1, milestone - 1), self.length) for milestone, _ in self.changes), self.length]
        stretches = zip(begins, begins[1:], self._intervals, strict=False)
        places = [n for first, last, each in stretches for n in range(-(-first // each) * each, last, each)]
        return (*places, self.length)

    def begins(self, epoch: int) -> int:
        """Counts the iterations before an epoch of a loop of iterations."""
        return self.ends[epoch - 1] if epoch else 0

    def done(self, batches: int, batches_per_epoch: int) -> dict[str, int]:
        """Tells what mmengine's checkpoints say of so many batches done: ``epoch`` and ``iter``. Inside an epoch
        nothing, as its runner can only begin one; a loop of iterations goes on from any."""
        if self.by_iterations:
            return {"epoch": 0, "iter": batches}
        whole = batches % batches_per_epoch == 0
        return {"epoch": batches // batches_per_epoch, "iter": batches} if whole else {}

    @property
    def _intervals(self) -> list[int]:
        return [self.interval, *(interval for _, interval in self.changes)]

    def _is_place(self, done: int) -> bool:
        # mmengine looks the interval up for the epoch or iteration that follows.
        after = bisect.bisect([milestone for milestone, _ in self.changes], done + 1)
        return done % self._intervals[after] == 0 or done == self.length


def _kind(settings: Mapping[str, Any]) -> str:
    """Tells which loop ``train_cfg`` names, by its type or by ``by_epoch`` alone."""
    by_epoch = settings.get("by_epoch")
    kind = settings.get("type") or (ITERATIONS if by_epoch is False else EPOCHS)
    kind = str(kind).rpartition(".")[2]
    if kind not in LENGTHS:
        raise UserError(f"expected {EPOCHS!r} or {ITERATIONS!r}", key="train_cfg.type", value=settings["type"])
    if by_epoch not in (None, kind == EPOCHS):
        raise UserError(f"expected {kind == EPOCHS} with {kind}", key="train_cfg.by_epoch", value=by_epoch)
    return kind


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_changes(changes: Any) -> bool:
    if not isinstance(changes, list | tuple):
        return False
    pairs = all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_count, pair)) for pair in changes)
    return pairs and all(one[0] < other[0] for one, other in zip(changes, changes[1:], strict=False))
