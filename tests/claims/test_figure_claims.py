"""The claims under figures 3, 4 and 6 as differences by seed, from the studies' CSV files."""

from pathlib import Path

import pytest

from dk_bench.claims.studies import CLAIMS, DYNAMICS, HELD, by_seed, differences
from dk_bench.errors import UserError

RESULTS = Path(__file__).parents[2] / "results"
BY_ID = {claim.id: claim for claim in CLAIMS}


def test_differences_are_those_of_the_committed_studies():
    """The means are those that the studies' own tables print."""
    found = {
        claim.id: differences(claim, RESULTS / "dynamics" / "probe.csv", "test_resnetdw")
        for claim in CLAIMS
        if claim.study == DYNAMICS
    }
    means = {name: sum(values.values()) / len(values) for name, values in found.items()}
    assert means == pytest.approx(
        {"fig3_scale": -0.2341, "fig3_class": -10.1, "fig3_scale_learnt": 0.0656, "fig3_class_learnt": -0.2667},
        abs=1e-3,
    )
    assert all(list(values) == [0, 1, 2] for values in found.values())
    fields = differences(BY_ID["fields_rotation"], RESULTS / "erf" / "photos_layer3.csv", "test_resnetdw")
    assert sum(fields.values()) / 3 == pytest.approx(0.0192, abs=1e-4)


def test_seeds_that_one_side_lacks_do_not_count(tmp_path):
    path = tmp_path / "summary.csv"
    held = f"small_dk{HELD} (seed 1)"
    path.write_text(
        f"model,over,inside\nsmall (seed 0),pictures,0.5\nsmall (seed 1),pictures,0.25\n"
        f'small_dk (seed 1),pictures,0.75\nsmall_dk (seed 2),pictures,0.75\n"{held}",pictures,0.625\n'
        "small_dk,checkpoints,9\nsmall_dk - small,seeds,9\n"
    )
    assert differences(BY_ID["fields_adapt"], path, "small") == {1: 0.5}
    assert differences(BY_ID["fields_adapt_held"], path, "small") == {1: 0.125}
    assert differences(BY_ID["fields_adapt"], path, "large") == {}
    with pytest.raises(UserError, match=r"summary.csv: no column agreement_scaled; expected a CSV of `dk-bench"):
        differences(BY_ID["fields_scale"], path, "small")


def test_files_that_will_not_do(tmp_path):
    with pytest.raises(UserError, match=r"probe.csv: cannot be read"):
        by_seed(tmp_path / "probe.csv", {}, "value")
    path = tmp_path / "twice.csv"
    path.write_text("model,inside\na (seed 0),1\na (seed 0),2\n")
    with pytest.raises(UserError, match="two rows of seed 0 are a; expected one"):
        by_seed(path, {"model": "a"}, "inside")
