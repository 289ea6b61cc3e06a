"""The runs of an experiment by arm, and the blocks that count: seeds that every arm has finished on like hardware."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dk_bench.claims.file import Claim, on_grid
from dk_bench.runs.identity import setting
from dk_bench.runs.record import RunRecord
from dk_bench.tables.cells import Cell, Data
from dk_bench.tables.entries import NOTHING
from dk_bench.tables.pooling import Pair, count_dirty, mixture, pair_of, test_checksum_of


@dataclass(frozen=True)
class Blocks:
    """The cells of an experiment's arms on one data set under the same settings; perhaps none. ``metric``: the one that
    the experiment is judged by. ``arms``: that the experiment declares."""

    metric: str = ""
    arms: Sequence[str] = ()
    cells: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def runs(self) -> list[RunRecord]:
        """Returns the runs of all arms."""
        return [run for cell in self.cells.values() for run in cell.runs]

    @property
    def data(self) -> Data | None:
        """Returns the data set, None where there is no run."""
        return next((cell.data for cell in self.cells.values()), None)

    @property
    def size(self) -> int | None:
        """Returns the images' size in pixels, None where there is no run."""
        for run in self.runs:
            return (run.model.get("input_size") or [setting(run.config, "data.size")])[-1]
        return None

    @property
    def length(self) -> str:
        """Tells how long the finished runs trained, ``20 epochs``; nothing where none has finished."""
        lengths = [length for cell in self.cells.values() if str(length := cell.length()) != NOTHING]
        if not lengths or isinstance(lengths[0], str):
            return lengths[0] if lengths else ""
        return f"{lengths[0]} epoch{'s' * (str(lengths[0]) != '1')}"

    @cached_property
    def whole(self) -> set[Pair]:
        """Returns the blocks that count, one a seed, the first. One that lacks an arm that was begun would be in some
        contrasts alone."""
        finished = [set(self._figures(arm, self.metric)) for arm in self.cells]
        common = set.intersection(*finished) if finished else set()
        first: dict[int, Pair] = {}
        for run in self._in_order:
            if (pair := pair_of(run)) in common:
                first.setdefault(run.seed, pair)
        return set(first.values())

    @cached_property
    def seeds(self) -> list[int]:
        """Returns the seeds of the blocks that count."""
        return sorted({pair.seed for pair in self.whole})

    @property
    def is_tested(self) -> bool:
        """Tells whether there is something to compare: runs that chose the settings are of rigid models alone."""
        return len(self.cells) > 1 and any(self._figures(arm, self.metric) for arm in self.cells)

    def contrast(self, claim: Claim, grid: str) -> dict[Pair, float]:
        """Returns a claim's contrast over the blocks that count, and that its arms have finished with its metrics."""
        return self._sums((on_grid(t.arm, grid), t.metric or self.metric, t.weight) for t in claim.contrast)

    def difference(self, weights: Mapping[str, float], metric: str) -> list[float]:
        """Returns a sum of arms by weight in one metric, for each block that counts and has it."""
        return [*self._sums((arm, metric, weight) for arm, weight in weights.items()).values()]

    def run_ids(self, arm: str) -> dict[int, str]:
        """Returns an arm's runs in the blocks that count: their ids, by seed."""
        runs = self.cells[arm].runs if arm in self.cells else []
        return {run.seed: run.run_id for run in runs if run.status == "finished" and pair_of(run) in self.whole}

    @cached_property
    def missing(self) -> dict[int, list[str]]:
        """Returns the arms without a finished run by seed, of seeds that any arm has begun."""
        finished = {arm: {pair.seed for pair in self._figures(arm, self.metric)} for arm in self.arms}
        seeds = sorted({run.seed for run in self.runs})
        lacking = {seed: [arm for arm, own in finished.items() if seed not in own] for seed in seeds}
        return {seed: names for seed, names in lacking.items() if names}

    @cached_property
    def apart(self) -> dict[int, str]:
        """Returns the seeds whose finished runs may not all be paired, and what differs: hardware, or else images."""
        kinds: dict[int, set[Pair]] = defaultdict(set)
        for run in self._finished():
            kinds[run.seed].add(pair_of(run))
        found = {}
        for seed, pairs in sorted(kinds.items()):
            draws = sorted({", then ".join(map(str, pair.draw)) for pair in pairs})
            if len(pairs) > 1:
                found[seed] = " and ".join(draws) if len(draws) > 1 else "several states of the data"
            elif any(self._read_others(run, self.metric) for run in self._finished() if run.seed == seed):
                found[seed] = "other test images than the first run"
        return found

    @cached_property
    def pooled(self) -> list[str]:
        """Tells what of the finished runs of all arms is not alike, and which were run again and change no figure."""
        runs = self._finished()
        again = [f"{arm}, seed {run.seed}" for arm, cell in self.cells.items() for run in cell.again]
        dirty = count_dirty(runs)
        words = mixture(runs) + [f"{dirty} of {len(runs)} runs of code that no commit holds"] * bool(dirty)
        return words + [f"run again without effect: {'; '.join(again)}"] * bool(again)

    @cached_property
    def _in_order(self) -> list[RunRecord]:
        """Returns the finished runs in the order in which they began."""
        return sorted(self._finished(), key=lambda run: (run.started, run.run_id))

    def _finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.status == "finished"]

    def _sums(self, terms: Iterable[tuple[str, str, float]]) -> dict[Pair, float]:
        """Returns a sum of figures, each an arm's in a metric by a weight, for the blocks that count and have all."""
        weighted = [(self._figures(arm, metric), weight) for arm, metric, weight in terms]
        pairs = self.whole.intersection(*(figures for figures, _ in weighted))
        return {pair: sum(weight * figures[pair] for figures, weight in weighted) for pair in sorted(pairs, key=repr)}

    def _figures(self, arm: str, metric: str) -> dict[Pair, float]:
        """Returns an arm's figures, but for those of other test images than the first run's."""
        figures = self.cells[arm].figures(metric) if arm in self.cells else {}
        others = {pair_of(run) for run in self.cells[arm].runs if self._read_others(run, metric)} if figures else ()
        return {pair: figure for pair, figure in figures.items() if pair not in others}

    def _read_others(self, run: RunRecord, metric: str) -> bool:
        """Tells whether a metric is of other test images than the first run's that says of which it is."""
        known = (state for each in self._in_order if (state := test_checksum_of(each, metric)))
        return test_checksum_of(run, metric) not in (None, next(known, None))
