"""Whatever trains a classifier goes on from inside an epoch to the same bits."""

import pytest
import torch
from training_cases import PowerCut, timeless, tiny, weights

from dk_bench.training import read_checkpoint, run_folder, train

RECIPES = (
    "optim.optimizer=lamb optim.cycle_limit=2 optim.warmup_lr=0.001 optim.offset_weight_decay=false ema.decay=0.9 "
    "ema.warmup=true loss.label_smoothing=0.1 data.augment.mixup=0.2",
    "optim.optimizer=lookahead_adamw optim.layer_decay=0.8 optim.schedule=step optim.decay_epochs=1 "
    "trainer.gradient_clip_val=0.1 trainer.gradient_clip_algorithm=agc",
    "optim.optimizer=muon optim.schedule=wsd optim.decay_epochs=0.5 loss.bce=true loss.target_threshold=0.2 "
    "trainer.gradient_clip_val=1",
)


@pytest.mark.parametrize(
    "recipe", RECIPES, ids=["lamb by cycles", "lookahead over adamw by steps", "muon by a late decay"]
)
def test_a_cut_run_goes_on_to_the_same_bits(recipe, tmp_path):
    few = ["optim.epochs=2", "optim.lr=0.003", "data.procedural.train_images=16", "data.procedural.val_images=2"]
    settings = [*recipe.split(), *few, "trainer.checkpoint_every_n_steps=3"]
    whole, cut = (tiny(tmp_path / name, *settings) for name in ("whole", "cut"))
    expected = train(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, callbacks=[PowerCut(3)])  # the second of two steps of the second epoch
    record = train(cut)
    assert len(record.attempts) == 2 and timeless(record) == timeless(expected)
    trained, same = weights(whole), weights(cut)
    assert all(torch.equal(value, same[name]) for name, value in trained.items())
    states = [read_checkpoint(run_folder(config) / "last.ckpt")["optimizer_states"][0] for config in (whole, cut)]
    for one, other in zip(*(state["state"].values() for state in states), strict=True):
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())
