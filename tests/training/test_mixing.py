"""Mixup and cutmix: what timm makes of a batch, a function of seed and step, and learnt from in training."""

import numpy as np
import pytest
import torch
from timm.data import Mixup
from training_cases import PowerCut, timeless, tiny, weights

from dk_bench.classification.mixing import mixing_of
from dk_bench.config import load_config, to_dict
from dk_bench.errors import UserError
from dk_bench.training import LitClassifier, train
from dk_bench.training.own_trainer import ConfiguredModule

# All that is done to images and labels of a recipe of timm's.
EVERYTHING = (
    "data.augment.auto_augment=rand-m7-mstd0.5-inc1",
    "data.augment.random_erasing=0.3",
    "data.augment.repeats=2",
    "data.augment.mixup=0.2",
    "data.augment.cutmix=1.0",
    "loss.bce=true",
    "loss.label_smoothing=0.1",
)


def configured(*overrides):
    return load_config(None, [f"data.augment.{override}" for override in overrides]).data.augment


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0), (0, 1), (0.8, 1)])
def test_a_batch_is_what_timm_makes_of_it(mode, mixup, cutmix):
    shares = {"prob": 0.9, "mode": mode} | ({"switch_prob": 0.3} if mixup and cutmix else {})
    settings = (f"mixup_{name}={value}" for name, value in shares.items())
    mixing = mixing_of(configured(f"mixup={mixup}", f"cutmix={cutmix}", *settings), 5)
    timms = Mixup(mixup, cutmix, **shares, label_smoothing=0, num_classes=5)
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 4, 2, 2, 1, 3])
    for seed in (0, 7, 2**63):
        np.random.seed(seed % 2**32)
        expected = timms(images.clone(), labels)
        np.random.seed(1)
        before = np.random.get_state()[1].copy()
        found = mixing(images.clone(), labels, seed)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(found[1].sum(1), torch.ones(6))
        assert np.array_equal(np.random.get_state()[1], before)
    assert not torch.equal(mixing(images.clone(), labels, 1)[0], mixing(images.clone(), labels, 2)[0])


def test_nothing_is_mixed_by_default_and_an_odd_batch_never():
    assert mixing_of(configured(), 5) is None
    with pytest.raises(UserError, match="batch of 3 images.*even"):
        mixing_of(configured("mixup=1"), 5)(torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64), 0)


def test_the_model_sees_mixed_images_and_the_loss_mixed_labels(monkeypatch):
    config = load_config(None, ["model.name=test_resnetdw", "data.augment.cutmix=1.0"])
    module = LitClassifier(to_dict(config), list("abc"))
    seen = {}
    monkeypatch.setattr(LitClassifier, "forward", lambda self, images: seen.update(images=images.clone()) or logits)
    monkeypatch.setattr(ConfiguredModule, "check_loss", lambda self, loss: None)
    monkeypatch.setattr(LitClassifier, "log", lambda *_, **__: None)
    logits, images, labels = torch.randn(4, 3), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    module.seed_step(5)
    loss = module.training_step((images.clone(), labels), 0)
    mixed, soft = module.mixing(images.clone(), labels, 5)
    assert torch.equal(seen["images"], mixed) and not torch.equal(mixed, images)
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())


def test_a_run_with_all_of_it_goes_on_to_the_same_bits_and_says_so_in_its_record(tmp_path):
    whole = train(tiny(tmp_path / "whole", *EVERYTHING, "optim.epochs=2"))
    assert whole.config["data"]["augment"]["cutmix"] == 1.0 and whole.config["loss"]["bce"]
    cut = tiny(tmp_path / "cut", *EVERYTHING, "optim.epochs=2", "trainer.checkpoint_every_n_steps=1")
    with pytest.raises(RuntimeError, match="power cut"):
        train(cut, callbacks=[PowerCut(4)])
    assert timeless(train(cut)) == timeless(whole)
    expected = weights(tiny(tmp_path / "whole", *EVERYTHING, "optim.epochs=2"))
    assert all(torch.equal(value, expected[name]) for name, value in weights(cut).items())
    assert timeless(train(tiny(tmp_path / "plain", "optim.epochs=2"))) != timeless(whole)
