"""Seeds planned from records, and what verdicts can do: by scipy, statsmodels, hand and simulation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from table_cases import PROCEDURAL, make_record

from dk_bench.claims.planning import NamedCell, read_contrast
from dk_bench.claims.simulation import RUNS, SimulatedFamily
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.runs.record import write_record
from dk_bench.tables.contrasts import decide, judge
from dk_bench.tables.power import power_of_difference, power_of_equivalence, seeds_for, std_interval

ROOT = Path(__file__).parents[2]


# Power


@pytest.mark.parametrize("n", [2, 3, 6, 8, 40])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12])
def test_power_of_a_difference_is_statsmodels(n, alpha):
    from statsmodels.stats.power import TTestPower

    for effect in (0.0, 0.3, 1.0, -2.0):
        expected = TTestPower().power(effect / 0.8, n, alpha)
        assert power_of_difference(n, effect, 0.8, alpha) == pytest.approx(expected, abs=3e-6)


def test_seeds_for_a_difference_are_statsmodels():
    from statsmodels.stats.power import TTestPower

    for ratio in (0.3, 0.5, 1.0, 1.8):
        for alpha, power in ((0.05, 0.8), (0.05 / 12, 0.8), (0.05, 0.95)):
            expected = TTestPower().solve_power(ratio, power=power, alpha=alpha)
            assert seeds_for(power_of_difference, 1.7 * ratio, 1.7, alpha, power) == int(np.ceil(expected))


@pytest.mark.parametrize("n", [3, 6, 20])
def test_power_of_equivalence_is_that_of_simulated_samples(n):
    generator = np.random.default_rng(1)
    for effect, margin in ((0.0, 1.0), (0.3, 1.2), (1.0, 1.0)):
        samples = generator.normal(effect, 0.6, (40_000, n))
        above = scipy.stats.ttest_1samp(samples, -margin, axis=1, alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(samples, margin, axis=1, alternative="less").pvalue
        share = np.mean(np.maximum(above, below) <= 0.05)
        assert power_of_equivalence(n, margin, 0.6, effect=effect) == pytest.approx(share, abs=0.011)


def test_seeds_for_equivalence_are_the_fewest():
    for margin, alpha in ((0.5, 0.05), (1.0, 0.05 / 8)):
        seeds = seeds_for(power_of_equivalence, margin, 1.0, alpha)
        powers = [power_of_equivalence(n, margin, 1.0, alpha) for n in (seeds - 1, seeds)]
        assert powers[0] < 0.8 <= powers[1]
    assert seeds_for(power_of_equivalence, 10.0, 0.1) == 2
    assert seeds_for(power_of_difference, 0.0, 1.0) is None
    assert seeds_for(power_of_equivalence, 0.001, 1.0) is None


def test_interval_of_a_spread_covers_it():
    # By tables of chi-square with 2 degrees of freedom: 0.0506 and 7.378.
    assert std_interval(1.0, 3) == pytest.approx(((2 / 7.378) ** 0.5, (2 / 0.0506) ** 0.5), rel=1e-3)
    stds = np.random.default_rng(2).normal(0, 1.7, (10_000, 6)).std(axis=1, ddof=1)
    low, high = np.array([std_interval(1.0, 6)]).T * stds
    assert np.mean((low <= 1.7) & (high >= 1.7)) == pytest.approx(0.95, abs=0.01)


# Verdicts


def test_errors_of_a_family_are_at_most_five_percent():
    """Of the committed simulation, which `test_figures_in_text` makes again."""
    assert "power --simulate --output results/power.md" in (ROOT / "Makefile").read_text()
    errors = (ROOT / "results" / "power.md").read_text().partition("## Power")[0]
    lines = [line for line in errors.splitlines() if re.match(r"\| (normal|heavy|skewed)", line)]
    rows = [line.strip("| ").split(" | ") for line in lines]
    shares = np.array([row[3:] for row in rows], dtype=float)
    assert shares.shape == (48, 3) and {row[1] for row in rows} == {"3", "4", "6", "8"}
    assert shares.max() < 5.7  # 5 and three standard errors
    assert shares[:16, 0].min() > 4  # and no less than a test should use, where runs are normal


def test_tails_and_a_shared_base_make_no_more_errors():
    for number, runs in enumerate(RUNS):
        generator = np.random.default_rng(number)
        family = SimulatedFamily(6, (0.0,) * 12, runs=runs)
        assert family.told(generator, 3000).any(axis=1).mean() < 0.06
        at_margin = SimulatedFamily(6, (0.5,) * 12, 0.25, runs)
        assert at_margin.within(generator, 3000).any(axis=1).mean() < 0.06


def test_simulated_verdicts_are_those_of_contrasts():
    """The simulation goes through arrays, verdicts through judgements; both say the same of the same runs."""
    family = SimulatedFamily(6, (0.0, 0.6, 1.2, 0.02), 0.4)
    told, within = (check(np.random.default_rng(5), 100) for check in (family.told, family.within))
    generator = np.random.default_rng(5)
    runs = np.stack([generator.standard_normal((100, 5)) * 0.4 / np.sqrt(2) for _ in range(6)])
    differences = runs[:, :, 1:] - runs[:, :, :1] + family.effects
    for which in range(100):
        verdicts = decide([judge(list(differences[:, which, arm])) for arm in range(4)])
        assert [v.word in ("supported", "contradicted") for v in verdicts] == list(told[which])
        assert [v.within_margin for v in verdicts] == list(within[which])
    assert 0 < told.mean() < 1 and 0 < within.mean() < 1


def test_power_of_one_contrast_is_what_verdicts_find():
    for n, effect, std in ((6, 1.1, 1.0), (8, 1.8, 1.7), (8, 0.5, 0.5)):
        found = SimulatedFamily(n, (effect,), std).told(np.random.default_rng(n), 10_000).mean()
        assert found == pytest.approx(power_of_difference(n, effect, std), abs=0.02)
        found = SimulatedFamily(n, (0.0,), std).within(np.random.default_rng(n), 10_000).mean()
        assert found == pytest.approx(power_of_equivalence(n, 0.5, std), abs=0.02)


# The command


def test_contrasts_are_read():
    assert read_contrast("a_dk-a") == [NamedCell(1, "a_dk"), NamedCell(-1, "a")]
    assert read_contrast(" a + b[x=1, y=2] - c-d ") == [
        NamedCell(0.5, "a"),
        NamedCell(0.5, "b", "x=1, y=2"),
        NamedCell(-0.5, "c"),
        NamedCell(-0.5, "d"),
    ]
    assert read_contrast("a[lr=0.1]-a[lr=0.2]")[1] == NamedCell(-1, "a", "lr=0.2")


@pytest.mark.parametrize("text", ["", "a", "-a", "a b", "a+b", "a-b[x", "a-", "a-a", "a--b"])
def test_other_contrasts_are_refused(text):
    with pytest.raises(UserError, match=re.escape(f"--contrast {text!r}: ")):
        read_contrast(text)


def write_records(folder):
    """Seeds of a base and of others: better, better by the same, one alone, on other data, of two settings."""
    other = PROCEDURAL | {"name": "photos"}
    tops = {"a": (70.0, 71.0, 72.0), "a_dk": (71.0, 73.0, 73.0), "equal": (71.0, 72.0, 73.0), "once": (70.0,)}
    records = [make_record(model, top1, seed=seed) for model, tops1 in tops.items() for seed, top1 in enumerate(tops1)]
    records += [make_record("elsewhere", 50.0, data=other), make_record("a", 50.0, data=other)]
    records += [make_record("twice", 70.0 + seed**2 + lr, seed=seed, lr=lr) for lr in (0.1, 0.2) for seed in range(3)]
    for number, record in enumerate(records):
        write_record(record, folder / str(number) / "record.json")
    return str(folder)


def test_command_plans_seeds(tmp_path, capsys):
    folder = write_records(tmp_path / "runs")
    out = tmp_path / "plan.md"
    asked = ["power", folder, "--contrast", "a_dk-a", "--effect", "1.1", "--family", "12", "--output", str(out)]
    assert main(asked) == 0
    printed, written = capsys.readouterr().out, out.read_text()
    # Differences 1, 2, 1: mean 4/3, SD 0.577; its interval by chi-square 0.30 to 3.63.
    assert "Pilot: 3 seeds, mean +1.33: +1.00 (seed 0), +2.00 (seed 1), +1.00 (seed 2); SD 0.58" in written
    rows = {tuple(line.strip("| ").split(" | ")[:2]): line.split(" | ")[2:] for line in written.splitlines()}
    tell, find = "tell a difference of 1.1", "find one of 0 within ±0.5"
    stds = [float(scipy.stats.tstd([1, 2, 1])), *std_interval(scipy.stats.tstd([1, 2, 1]), 3)]
    for (statement, corrected), power_of, size, alpha in (
        ((tell, "alone"), power_of_difference, 1.1, 0.05),
        ((tell, "Holm's worst step of 12"), power_of_difference, 1.1, 0.05 / 12),
        ((find, "alone"), power_of_equivalence, 0.5, 0.05),
        ((find, "Holm's worst step of 12"), power_of_equivalence, 0.5, 0.05 / 12),
    ):
        shown = [int(cell.strip(" |")) for cell in rows[statement, corrected]]
        assert shown == [seeds_for(power_of, size, std, alpha) for std in stds]
    assert "by SD 0.58" in printed and "Seeds for a power of 80 %" in printed
    assert main(["power", folder, "--contrast", "twice[optim.lr=0.2]-a", "--effect", "1"]) == 0
    assert "Seeds for twice[optim.lr=0.2] - a." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--contrast", "a_dk-b"], "no record of b, expected some of a, a_dk, elsewhere"),
        (["--contrast", "elsewhere-a_dk"], "its cells are not on one data set: "),
        (["--contrast", "a_dk-a", "--data", "photos"], "its cells are not on one data set called photos"),
        (["--contrast", "once-a"], "once - a: 1 seeds in common with a finite val/top1, expected at least 2"),
        (["--contrast", "equal-a"], "--contrast equal - a: all differences are +1.00: there is no spread"),
        (["--contrast", "twice-a"], "2 cells are twice, expected one of twice[optim.lr=0.1]; twice[optim.lr=0.2]"),
        (["--contrast", "twice[lr=3]-a"], "0 cells are twice[lr=3]"),
        (["--metric", "val/top7"], "0 seeds in common with a finite val/top7"),
        (["--effect", "0"], "--effect: expected a difference in points, not 0, got 0.0"),
        (["--effect", "nan"], "--effect: expected a difference"),
        (["--margin", "-1"], "--margin: expected a number above 0, got -1.0"),
        (["--power", "1"], "--power: expected a share above 0 and below 1, got 1.0"),
        (["--family", "0"], "--family: expected at least 1, got 0"),
        (["--simulate"], "--simulate: takes neither records nor --contrast and --effect"),
        (["--output", "."], "is a folder, expected a file"),
    ],
)
def test_command_names_what_is_wrong(tmp_path, capsys, changed, words):
    folder = write_records(tmp_path / "runs")
    assert main(["power", folder, "--contrast", "a_dk-a", "--effect", "1.1", *changed]) == 2
    assert words in capsys.readouterr().err


def test_command_without_records_or_a_contrast(tmp_path, capsys):
    assert main(["power", "--contrast", "a-b", "--effect", "1"]) == 2
    assert "expected folders with records, or --simulate" in capsys.readouterr().err
    assert main(["power", str(tmp_path), "--contrast", "a-b", "--effect", "1"]) == 2
    assert "no record in it" in capsys.readouterr().err
    folder = write_records(tmp_path / "runs")
    assert main(["power", folder, "--effect", "1"]) == 2
    assert "--contrast: expected A-B" in capsys.readouterr().err
    assert main(["power", folder, "--contrast", "a_dk-a"]) == 2
    assert "--effect: expected a difference in points" in capsys.readouterr().err
