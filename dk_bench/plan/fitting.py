"""What a trial of a run saw, and how long the whole run will take by it."""

import heapq
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dk_bench.training.outline import Outline

EPOCH, STEP, TRAINED = "epoch", "step", "trained"  # an epoch begins, a step has ended, training has
EVALUATION, EVALUATED, EVALUATION_END = "evaluation", "evaluated", "evaluation end"  # a batch has been evaluated
TEST, TESTED, TEST_END = "test", "tested", "test end"

Events = Sequence[Sequence[Any]]  # (what, seconds)


@dataclass(frozen=True)
class Fit:
    """Seconds of a run's parts, as a trial saw them; ``step`` and ``evaluated`` are of one batch."""

    start: float  # until training begins: imports, data, model
    once: float  # what the first epoch takes beyond another
    step: float
    epoch: float  # of an epoch beside its steps: the first batch's longer way, checkpoint, record
    evaluated: float
    evaluation: float  # of an evaluation beside its batches
    tests: float  # all of them
    finish: float  # after training and tests
    before: float  # of the start, until the record says that the run has
    after: float  # of the finish, after the record says so
    steps: int  # an epoch
    batches: int  # an evaluation
    images: dict[str, int]  # of train and val
    memory: int | None = None  # bytes on a GPU
    decoding: float = 0.0  # of images that all runs share, by the first of them
    waiting: int = 0  # how many runs of the cell do that, or wait for it

    def seconds(self, outline: Outline) -> float:
        """Returns how long the process of a whole run lives."""
        steps = outline.iterations or outline.epochs * self.steps
        evaluation = self.evaluation + self.batches * self.evaluated
        train = outline.epochs * self.epoch + steps * self.step
        return self.start + self.once + train + outline.evaluations * evaluation + self.tests + self.finish


@dataclass(frozen=True)
class Stretch:
    """Moments of one epoch: its begin and end, those of its steps, of its evaluation's begin, batches and end."""

    begin: float
    end: float
    steps: list[float]
    evaluation: list[float]
    evaluated: list[float]


def fit_of(seen: dict[str, Any], began: float, ended: float) -> Fit:
    """Returns the parts of a run from what a trial wrote, whose process lived from ``began`` to ``ended``."""
    events, batches = seen["events"], seen["batches"]
    stretches = _stretches(events)
    steady = stretches[1:] or stretches
    step, evaluated = _between([s.steps for s in steady]), _between([s.evaluated for s in steady])
    step = step or statistics.fmean(s.steps[0] - s.begin for s in steady)
    epoch = statistics.fmean(_beside_steps(stretch, step) for stretch in steady)
    ends = _evaluation_ends(steady, evaluated)
    evaluation = statistics.fmean(ends) if ends else 0.0
    usual = epoch + len(stretches[0].steps) * step
    if stretches[0].evaluated:
        usual += evaluation + len(stretches[0].evaluated) * evaluated
    took, tests = _tests(events, batches[TESTED])
    started, finished = seen["recorded"]
    return Fit(
        start=stretches[0].begin - began,
        once=max(0.0, stretches[0].end - stretches[0].begin - usual),
        step=step,
        epoch=epoch,
        evaluated=evaluated,
        evaluation=evaluation,
        tests=tests,
        finish=ended - stretches[-1].end - took,
        before=max(0.0, started - began),
        after=max(0.0, ended - finished),
        steps=batches[STEP],
        batches=batches[EVALUATED],
        images=seen["images"],
        memory=seen["memory"],
    )


def _stretches(events: Events) -> list[Stretch]:
    begins = [number for number, (what, _) in enumerate(events) if what == EPOCH]
    last = next(number for number, (what, _) in enumerate(events) if what == TRAINED)
    stretches = []
    for first, following in zip(begins, [*begins[1:], last], strict=True):
        inside = events[first:following]

        def moments(*kinds: str, inside: Events = inside) -> list[float]:
            return [at for what, at in inside if what in kinds]

        evaluation = moments(EVALUATION, EVALUATION_END)
        stretches.append(Stretch(events[first][1], events[following][1], moments(STEP), evaluation, moments(EVALUATED)))
    return stretches


def _between(several: Iterable[Sequence[float]]) -> float:
    """Returns the mean time from one moment to the next over several rows of them; 0.0 where none has a next."""
    rows = [row for row in several if len(row) > 1]
    return sum(row[-1] - row[0] for row in rows) / sum(len(row) - 1 for row in rows) if rows else 0.0


def _beside_steps(stretch: Stretch, step: float) -> float:
    """Returns the seconds of an epoch that are neither its steps' nor its evaluation's."""
    evaluation = stretch.evaluation[-1] - stretch.steps[-1] if stretch.evaluation else 0.0
    return stretch.end - stretch.begin - evaluation - (stretch.steps[-1] - stretch.steps[0]) - step


def _evaluation_ends(stretches: Iterable[Stretch], evaluated: float) -> list[float]:
    """Returns the seconds of each evaluation beside its batches."""
    return [
        s.evaluation[-1] - s.steps[-1] - len(s.evaluated) * evaluated for s in stretches if s.evaluated and s.evaluation
    ]


def _tests(events: Events, batches: Sequence[int]) -> tuple[float, float]:
    """Returns the seconds that tests took, and those that they would have taken with all of their batches."""
    took = whole = 0.0
    begins = [number for number, (what, _) in enumerate(events) if what == TEST]
    for first, count in zip(begins, batches, strict=True):
        last = next(number for number in range(first, len(events)) if events[number][0] == TEST_END)
        moments = [at for what, at in events[first:last] if what == TESTED]
        seconds = events[last][1] - events[first][1]
        took += seconds
        whole += seconds + max(0, count - len(moments)) * _between([moments])
    return took, whole


def wall_seconds(runs: Iterable[float], workers: int) -> float:
    """Returns how long runs of these seconds take, started in this order, so many at a time."""
    free = [0.0] * workers
    for seconds in runs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)
