"""Entries of tables: numbers, p values, figures over seeds, and text. A value knows how it is printed."""

from dataclasses import dataclass

from dk_bench.tables.statistics import Summary

NOTHING = "-"


@dataclass(frozen=True)
class Number:
    """A number that is printed with so many digits after the point, with its sign where it is a difference."""

    value: float | None
    digits: int = 1
    signed: bool = False

    def __str__(self) -> str:
        return NOTHING if self.value is None else f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Chance:
    """A p value, or none."""

    value: float | None

    def __str__(self) -> str:
        return NOTHING if self.value is None else f"{self.value:.3f}" if self.value >= 0.0005 else "<0.001"


@dataclass(frozen=True)
class Figure:
    """One quantity over a cell's seeds: the summary of its finished runs, and how many did not finish or, finished, are
    ``without`` it (a loss that was NaN, say). ``stopped``: how many a sweep stopped early.

    ``dirty``: how many runs, of all, had code with changes that were not committed. ``signed``: a difference, printed
    with its sign. ``marks``: what of the runs behind it is not alike, in words.
    """

    summary: Summary | None
    failed: int = 0
    running: int = 0
    without: int = 0
    dirty: int = 0
    run: bool = True
    signed: bool = False
    marks: tuple[str, ...] = ()
    stopped: int = 0

    def __str__(self) -> str:
        """Returns it as people read it: ``71.2 ± 0.5 (n=3), 1 failed``; one run has no spread: ``71.2 (n=1)``."""
        summary = self.summary
        if summary is None:
            return self.state
        spread = "" if summary.half_width is None else f" ± {summary.half_width:.1f}"
        mean = f"{summary.mean:{'+' if self.signed else ''}.1f}"
        return f"{mean}{spread} (n={summary.n})" + (f", {self.state}" if self.state else "")

    @property
    def state(self) -> str:
        """Says what stands beside the figure or in place of one: ``1 failed``, ``running``, ``not run``; or nothing."""
        if not self.run:
            return "not run"
        alone = self.summary is None and self.failed + self.running + self.stopped == 1
        counts = ((self.failed, "failed"), (self.running, "running"), (self.stopped, "stopped early"))
        words = [word if alone else f"{count} {word}" for count, word in counts if count]
        if self.summary is None and not words:
            words = ["no figure"]
        elif self.summary is not None and self.without:
            words.append(f"{self.without} without figure")
        return ", ".join([*words, *[f"{self.dirty} dirty"] * bool(self.dirty), *self.marks])


NOT_RUN = Figure(None, run=False)


class Markup(str):
    """Text that is Markdown already."""


class Right(str):
    """Text that stands on the right, as numbers do: several numbers, say."""


Value = str | Number | Chance | Figure
