"""What optimisers keep, as plans count it, beside the state that each leaves after steps on real weights."""

import pytest
from timm.optim import get_optimizer_info, list_optimizers

from dk_bench.training.kept import copies_by_step
from dk_bench.training.outline import copies_kept

ELSEWHERE = ("bnb", "fused")  # of packages that need a GPU
OWN = [name for name in list_optimizers() if not name.startswith(ELSEWHERE)]


@pytest.mark.parametrize("name", [name for name in OWN if not get_optimizer_info(name).second_order])
def test_copies_are_those_of_steps_on_real_weights(name):
    assert copies_kept(name) == copies_by_step(name, "cpu")


def test_copies_of_some_are_known():
    known = {"momentum": 1, "AdamW": 2, "rmsprop": 2, "adan": 4, "madgrad": 3, "mars": 3, "sgdw": 1, "novograd": 1}
    assert {name: copies_kept(name) for name in known} == known
    assert 0 < copies_kept("adafactor") < 1 and copies_kept("bnbadam") == copies_kept("ASGD") == 2
