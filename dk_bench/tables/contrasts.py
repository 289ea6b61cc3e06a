"""Contrasts between cells, judged: is a difference told from zero, is it within a margin, or would it take more seeds?

The rule, for a family of contrasts that is declared before it is run:

- A contrast is a weighted sum of cells whose weights sum to zero, taken seed by seed over the seeds that all its cells
  have finished on the same hardware: ``local DK - rigid``, say. All is in points of the metric.
- *Told from zero*: Student's two-sided t test of the differences, corrected by Holm's method over the family, at 5 %.
  Told, the claim is **supported** where the mean has the claim's sign, and **contradicted** where it has the other. A
  claim that something is as good as something else (sign 0) is that it is not worse by the margin: there the test is of
  the mean against -margin, and above it supports, below it contradicts.
- *Within the margin*: two one-sided t tests, corrected by Holm's method over the family too, at 5 %. A contrast that
  is not told from zero and is within the margin is **equivalent**. One that is told and is within it keeps its verdict,
  and "within the margin" is said beside it.
- Neither: **undecided**, with the seeds that it would take: so many that a difference as large as the paper's would be
  told, and one of zero found within the margin, with a power of 80 %, by the spread of ours.
- Nothing to judge: **not run**.

So the chance that a family holds any wrong "told" is at most 5 %, and so is that of any wrong "within the margin",
whatever the contrasts have in common. Those of a family that are not run, or of one seed, count in its size: the
correction is for what was declared. The exact sign-flip test stands beside Student's as a check that needs no normal
distribution; it decides nothing, since few seeds cannot get below 5 % over a family.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from dk_bench.tables.cells import Cell
from dk_bench.tables.pooling import Pair
from dk_bench.tables.power import power_of_difference, power_of_equivalence, seeds_for
from dk_bench.tables.significance import equivalence_p, holm, sign_flip_p, student_p
from dk_bench.tables.statistics import summarize

ALPHA, POWER = 0.05, 0.8
MARGIN = 0.5  # points: the smallest main effect of the paper, local over global DK
SUPPORTED, CONTRADICTED, EQUIVALENT = "supported", "contradicted", "equivalent"
UNDECIDED, NOT_RUN = "undecided", "not run"


def paired_differences(cells: Sequence[Cell], weights: Sequence[float], metric: str) -> dict[Pair, float]:
    """Returns a contrast by what its runs have in common, seed, draw and images (see `dk_bench.tables.pooling`): the
    sum of ``weights`` times the cells' ``metric`` at the end of training, over the runs that every cell has finished
    with a finite figure; in order of the seeds, perhaps none.

    Raises ValueError where weights do not match the cells or do not sum to zero.
    """
    if len(cells) != len(weights) or len(cells) < 2:
        raise ValueError(f"weights: expected one for each of at least 2 cells, got {len(weights)} for {len(cells)}")
    if abs(sum(weights)) > 1e-9 * max(map(abs, weights)) or not any(weights):
        raise ValueError(f"weights: expected a sum of zero, and not all zero, got {list(weights)}")
    figures = [cell.figures(metric) for cell in cells]
    pairs = sorted(set.intersection(*map(set, figures)), key=lambda pair: (pair.seed, repr(pair)))
    return {pair: sum(w * f[pair] for w, f in zip(weights, figures, strict=True)) for pair in pairs}


@dataclass(frozen=True)
class Judgement:
    """Holds what differences by seed say, before the correction over a family. All but p values is in points.

    ``std`` is the sample's (n - 1); ``half`` is half the length of the mean's 95 % interval by Student's t.
    ``p`` is Student's and ``p_sign_flip`` exact, both two-sided, of the mean being ``null``;
    ``p_equivalence`` is of its being outside of +-margin. None where there is none: no mean without a difference; no
    spread and no p of one; no p of differences that are equal but for rounding (but that by sign flips); no
    ``p_equivalence`` without a margin. ``effect`` is the difference that the paper has, None where it gives none.
    ``marks``: what of the runs that it pairs is not alike, in words.
    """

    n: int
    expected_sign: int
    margin: float | None = None
    effect: float | None = None
    mean: float | None = None
    std: float | None = None
    half: float | None = None
    p: float | None = None
    p_sign_flip: float | None = None
    p_equivalence: float | None = None
    marks: tuple[str, ...] = ()

    @property
    def null(self) -> float:
        """Tells what the mean is tested against: 0, and -margin where the claim is "as good as" (sign 0)."""
        return 0.0 if self.expected_sign else -self.margin


def judge(
    differences: Iterable[float], *, margin: float | None = MARGIN, expected_sign: int = 1, effect: float | None = None
) -> Judgement:
    """Judges one contrast by its differences, in any order; see the module's docstring for the rule.

    Args:
        margin: half the width of what counts as no difference, in points; None for no test of equivalence.
        expected_sign: of the claim: 1, -1, or 0 for "as good as", which needs a margin.
        effect: the paper's difference in points, for the seeds that an open verdict would take.

    Raises ValueError for differences that are not finite, and for any other sign or margin.
    """
    values = list(differences)
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"differences: expected finite numbers, got {values}")
    if margin is not None and not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin: expected a number above 0, got {margin}")
    if expected_sign not in (-1, 0, 1):
        raise ValueError(f"expected_sign: expected 1, -1 or 0, got {expected_sign!r}")
    if expected_sign == 0 and margin is None:
        raise ValueError('margin: expected a number where expected_sign is 0 ("as good as"), got None')
    n, mean, std, half = astuple(summarize(values)) if values else (0, None, None, None)
    bare = Judgement(n, expected_sign, margin, effect, mean, std, half)
    if std is None:
        return bare
    p, p_flip = _known(student_p(mean, std, n, bare.null)), sign_flip_p(values, bare.null)
    p_equivalence = None if margin is None else _known(equivalence_p(mean, std, n, margin))
    return replace(bare, p=p, p_sign_flip=p_flip, p_equivalence=p_equivalence)


@dataclass(frozen=True)
class Verdict:
    """Says what a contrast tells within its family. ``str()`` gives it in words, as tables print it.

    ``p`` and ``p_equivalence`` are a judgement's, corrected by Holm's method over the ``family``, which is its size.
    ``seeds_effect`` and ``seeds_margin``: the seeds with which the paper's difference would be told, and a difference
    of zero found within the margin, at a power of 80 % and Holm's worst step; None where that is not known (one seed,
    no effect, no margin) or more than 10,000. ``n``: the seeds there are.
    """

    word: str
    n: int
    family: int
    p: float | None = None
    p_equivalence: float | None = None
    within_margin: bool = False
    seeds_effect: int | None = None
    seeds_margin: int | None = None

    @property
    def seeds(self) -> int | None:
        """Returns the seeds that would decide: whichever of the two is more; None where none is known."""
        return max((seeds for seeds in (self.seeds_effect, self.seeds_margin) if seeds), default=None)

    def __str__(self) -> str:
        if self.word in (SUPPORTED, CONTRADICTED):
            return f"{self.word}, within the margin" if self.within_margin else self.word
        if self.word == UNDECIDED and self.seeds and self.seeds > self.n:
            return f"undecided ({self.seeds} seeds)"
        return self.word


def decide(judgements: Sequence[Judgement]) -> list[Verdict]:
    """Returns the verdicts on one family, in its order; see the module's docstring for the rule. The family is all that
    is passed: what is not run yet (a judgement of no differences) counts in its size."""
    told, within = holm([j.p for j in judgements]), holm([j.p_equivalence for j in judgements])
    return [_verdict(*each, len(judgements)) for each in zip(judgements, told, within, strict=True)]


def _verdict(judged: Judgement, p: float, p_equivalence: float, family: int) -> Verdict:
    is_told, is_within = p <= ALPHA, p_equivalence <= ALPHA  # not where they are NaN
    if judged.n == 0:
        word = NOT_RUN
    elif is_told:
        is_above = judged.mean > judged.null
        word = SUPPORTED if is_above == (judged.expected_sign >= 0) else CONTRADICTED
    else:
        word = EQUIVALENT if is_within else UNDECIDED
    seeds = _seeds(judged, ALPHA / family)
    return Verdict(word, judged.n, family, _known(p), _known(p_equivalence), bool(is_within), *seeds)


def _seeds(judged: Judgement, alpha: float) -> tuple[int | None, int | None]:
    """Returns the seeds for the paper's difference (0 where "as good as" has none there), and for the margin."""
    if judged.p is None:
        return None, None
    effect = 0.0 if judged.effect is None and judged.expected_sign == 0 else judged.effect
    away = effect is not None and abs(effect - judged.null)
    of_effect = seeds_for(power_of_difference, away, judged.std, alpha, POWER) if away else None
    of_margin = judged.margin and seeds_for(power_of_equivalence, judged.margin, judged.std, alpha, POWER)
    return of_effect, of_margin


def _known(p: np.floating | np.ndarray) -> float | None:
    return None if np.isnan(p) else float(p)
