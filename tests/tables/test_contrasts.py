"""Contrasts and verdicts against scipy, statsmodels and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from table_cases import make_record

from dk_bench.tables.cells import gather
from dk_bench.tables.contrasts import Judgement, Verdict, decide, judge, paired_differences
from dk_bench.tables.significance import holm, sign_flip_p

SAMPLES = [np.random.default_rng(seed).normal(0.6, 1, n).round(2) for seed in range(4) for n in (2, 3, 6, 8, 10)]


# Differences by seed


def cells_of(**tops):
    """One cell a model, of the top-1 of its seeds; None is a run that failed."""
    runs = [(model, seed, top1) for model, values in tops.items() for seed, top1 in enumerate(values)]
    records = [make_record(m, t, seed=s, status="failed" if t is None else "finished") for m, s, t in runs]
    cells = {cell.model: cell for cell in gather(records)}
    return [cells[model] for model in tops]


def by_seed(cells, weights, metric="val/top1"):
    return {pair.seed: value for pair, value in paired_differences(cells, weights, metric).items()}


def test_differences_are_over_the_seeds_that_all_cells_finished():
    cells = cells_of(a=(71.0, 72.0, 74.0, None, 70.0), b=(70.0, 70.0, 70.0, 70.0), c=(60.0, math.nan, 63.0, 60.0))
    assert by_seed(cells[:2], (1, -1)) == {0: 1.0, 1: 2.0, 2: 4.0}
    assert by_seed(cells, (1, -0.5, -0.5)) == {0: 6.0, 2: 7.5}
    assert by_seed(cells, (1, -0.5, -0.5), "val/none") == {}


@pytest.mark.parametrize("weights", [(1, -0.9), (0, 0), (1, -0.5, -0.5), (1,)])
def test_weights_of_no_contrast_are_refused(weights):
    with pytest.raises(ValueError, match="weights: expected"):
        paired_differences(cells_of(a=(1.0,), b=(2.0,)), weights, "val/top1")


# Judgements


@pytest.mark.parametrize("sample", SAMPLES, ids=len)
@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_tests_are_scipys(sample, margin):
    judged = judge(list(sample), margin=margin)
    expected = scipy.stats.ttest_1samp(sample, 0)
    assert (judged.n, judged.mean, judged.std) == pytest.approx((len(sample), sample.mean(), sample.std(ddof=1)))
    assert judged.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (judged.mean - judged.half, judged.mean + judged.half) == pytest.approx((low, high), rel=1e-9)
    above = scipy.stats.ttest_1samp(sample, -margin, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(sample, margin, alternative="less").pvalue
    assert judged.p_equivalence == pytest.approx(max(above, below), rel=1e-9)
    flips = scipy.stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert judged.p_sign_flip == pytest.approx(flips.pvalue, rel=1e-12)


@pytest.mark.parametrize("sample", SAMPLES[::3], ids=len)
def test_equivalence_is_statsmodels(sample):
    from statsmodels.stats.weightstats import DescrStatsW

    expected, *_ = DescrStatsW(sample).ttost_mean(-0.8, 0.8)
    assert judge(list(sample), margin=0.8).p_equivalence == pytest.approx(expected, rel=1e-9)


def test_as_good_as_is_a_test_against_the_lower_margin():
    sample = SAMPLES[3]
    judged, moved = judge(list(sample), expected_sign=0, margin=0.7), judge(list(sample + 0.7))
    assert judged.null == -0.7 and (judged.p, judged.p_sign_flip) == pytest.approx((moved.p, moved.p_sign_flip))


def test_sign_flips_by_hand():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0  # a sum of zero is the least of all
    assert sign_flip_p([3.0, 2.0, -1.0]) == 4 / 8  # sums of 6, -6, 4, -4
    assert sign_flip_p([0.3] * 6) == 2 / 64 and sign_flip_p([1.3] * 6, 1.0) == 2 / 64
    # As percentages of images come in float32: sums that are equal but for rounding are tied.
    rounded = [float(np.float32(70.1 + x) - np.float32(70.1)) for x in (0.1, 0.2, 0.3, -0.1)]
    assert sign_flip_p(rounded) == sign_flip_p([1, 2, 3, -1]) == 6 / 16


def test_many_differences_are_flipped_at_random_but_the_same_each_time():
    sample = np.random.default_rng(0).normal(0.35, 1, 40)
    assert sign_flip_p(sample) == sign_flip_p(sample)
    assert sign_flip_p(sample) == pytest.approx(scipy.stats.ttest_1samp(sample, 0).pvalue, rel=0.2)
    assert sign_flip_p(np.ones(40)) == 1 / 100_001


def test_one_difference_or_none_has_neither_spread_nor_p():
    assert judge([]) == Judgement(0, 1, 0.5)
    assert judge([2.0], effect=1.0) == Judgement(1, 1, 0.5, 1.0, mean=2.0)


def test_equal_differences_have_no_p_but_by_sign_flips():
    judged = judge([1.0, 1.00001, 1.0, 1.0])
    assert judged.p is None and judged.p_equivalence is None and judged.p_sign_flip == 2 / 16
    assert str(decide([judged])[0]) == "undecided"


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ([1.0, math.nan], {}, "differences: expected finite"),
        ([1.0], {"margin": 0.0}, "margin: expected a number above 0, got 0.0"),
        ([1.0], {"margin": math.inf}, "margin: expected a number above 0"),
        ([1.0], {"expected_sign": 2}, "expected_sign: expected 1, -1 or 0, got 2"),
        ([1.0], {"expected_sign": 0, "margin": None}, "margin: expected a number where expected_sign is 0"),
    ],
)
def test_what_cannot_be_judged_is_named(values, settings, words):
    with pytest.raises(ValueError, match=words):
        judge(values, **settings)


# Families


@pytest.mark.parametrize("seed", range(6))
def test_holm_is_statsmodels(seed):
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(seed).beta(0.4, 2, size=1 + 3 * seed)
    p_values[::4] = p_values[0]  # ties
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)
    rows = np.stack([p_values, p_values[::-1]])
    assert holm(rows) == pytest.approx(np.stack([expected, expected[::-1]]), rel=1e-12)


def test_holm_by_hand():
    # The smallest of four times 4, then times 3, ..., never below one before, never above 1.
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    # What there is no p of counts.
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.03, math.nan, 0.04], nan_ok=True)
    assert holm([math.nan] * 2) == pytest.approx([math.nan] * 2, nan_ok=True) and holm([]).shape == (0,)


def spread(mean, std, n=6):
    """A sample with exactly this mean and standard deviation."""
    values = np.linspace(-1, 1, n)
    return list(mean + std * values / values.std(ddof=1))


@pytest.mark.parametrize(
    ("mean", "std", "sign", "words"),
    [
        (1.0, 0.5, 1, "supported"),
        (1.0, 0.5, -1, "contradicted"),
        (-1.0, 0.5, 1, "contradicted"),
        (-1.0, 0.5, -1, "supported"),
        (0.2, 0.1, 1, "supported, within the margin"),
        (-0.2, 0.1, 1, "contradicted, within the margin"),
        (0.05, 0.2, 1, "equivalent"),
        (0.3, 2.0, 1, "undecided (139 seeds)"),
        (0.0, 0.1, 0, "supported, within the margin"),
        (2.0, 0.5, 0, "supported"),  # better is as good
        (-2.0, 0.5, 0, "contradicted"),
        (-0.5, 0.5, 0, "undecided (11 seeds)"),
    ],
)
def test_verdict_of_one_contrast(mean, std, sign, words):
    (verdict,) = decide([judge(spread(mean, std), expected_sign=sign, margin=0.5)])
    assert str(verdict) == words


def test_family_counts_what_is_not_run_and_corrects_both_statements():
    strong, close = judge(spread(1.0, 0.6)), judge(spread(0.0, 0.35))
    assert [v.word for v in decide([strong, close])] == ["supported", "equivalent"]
    verdicts = decide([strong, close, *[judge([])] * 10])
    assert [v.word for v in verdicts] == ["undecided", "undecided", *["not run"] * 10]
    assert verdicts[0].p == pytest.approx(12 * strong.p)
    assert verdicts[1].p_equivalence == pytest.approx(12 * close.p_equivalence)
    assert {v.family for v in verdicts} == {12} and verdicts[2] == Verdict("not run", 0, 12)
    assert decide([]) == []


def test_open_verdict_says_the_seeds_for_the_papers_difference_and_for_none():
    (alone,) = decide([judge(spread(0.4, 1.0), effect=1.1)])
    assert alone.seeds_effect == 9 and alone.seeds_margin == 36 and str(alone) == "undecided (36 seeds)"
    (without,) = decide([judge(spread(0.4, 1.0), margin=None, effect=1.1)])
    assert without.seeds_margin is None and str(without) == "undecided (9 seeds)"
    (neither,) = decide([judge(spread(0.4, 1.0), margin=None)])
    assert neither.seeds is None and str(neither) == "undecided"
    assert str(decide([judge([0.4], effect=1.1)])[0]) == "undecided"
