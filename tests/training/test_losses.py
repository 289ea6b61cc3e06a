"""The losses of training beside timm's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from training_cases import ONE_STEP

from dk_bench.classification.losses import TrainingLoss
from dk_bench.config import LossConfig, load_config
from dk_bench.errors import UserError
from dk_bench.runs.identity import config_hash
from dk_bench.training import train

pytestmark = pytest.mark.usefixtures("seeded")

BATCH, CLASSES = 6, 5


def logits_and_labels():
    return 3 * torch.randn(BATCH, CLASSES), torch.randint(CLASSES, (BATCH,))


def mixed(smoothing):
    """Labels of one mixed batch as timm's mixup gives them, smoothed by it."""
    np.random.seed(0)
    mixup = Mixup(mixup_alpha=1, label_smoothing=smoothing, num_classes=CLASSES, mode="batch")
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    return mixup(torch.zeros(BATCH, 3, 8, 8), labels)[1]


def test_the_loss_of_no_section_is_plain_cross_entropy_to_the_bit():
    logits, labels = logits_and_labels()
    assert torch.equal(TrainingLoss(LossConfig())(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_cross_entropy_is_timms(smoothing):
    logits, labels = logits_and_labels()
    ours = TrainingLoss(LossConfig(label_smoothing=smoothing))
    torch.testing.assert_close(ours(logits, labels), LabelSmoothingCrossEntropy(smoothing)(logits, labels))
    assert mixed(0.0).max() < 1
    torch.testing.assert_close(ours(logits, mixed(0.0)), SoftTargetCrossEntropy()(logits, mixed(smoothing)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("sums", [False, True])
def test_binary_cross_entropy_is_timms(smoothing, threshold, sums):
    logits, labels = logits_and_labels()
    config = LossConfig(label_smoothing=smoothing, bce=True, target_threshold=threshold, sum_classes=sums)
    timms = BinaryCrossEntropy(smoothing, target_threshold=threshold, sum_classes=sums)
    torch.testing.assert_close(TrainingLoss(config)(logits, labels), timms(logits, labels))
    torch.testing.assert_close(TrainingLoss(config)(logits, mixed(0.0)), timms(logits, mixed(smoothing)))
    narrow = TrainingLoss(config)(logits.bfloat16(), labels)  # as under autocast
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, timms(logits.bfloat16().float(), labels))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.label_smoothing=1", "expected 0 to below 1"),
        ("loss.target_threshold=0.2", "expected null or 0 to below 1, with loss.bce"),
        ("loss.sum_classes=true", "expected false, or loss.bce"),
        ("loss.smoothing=0.1", "unknown key 'loss.smoothing'"),
    ],
)
def test_bad_settings_are_one_sentence(override, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


def test_a_run_minimises_what_its_configuration_says_and_is_told_by_cross_entropy(tmp_path):
    """The first step's loss is of the same logits; validation stays comparable."""
    command = [*ONE_STEP, "model.name=test_resnetdw", f"output={tmp_path}", "optim.epochs=2", "optim.warmup_epochs=1"]
    told = {}
    for overrides in ([], ["loss.label_smoothing=0.2"], ["loss.bce=true", "loss.target_threshold=0.1"]):
        record = train(load_config(None, [*command, *overrides]))
        told[config_hash(record.config)] = record.metrics["epochs"][0]  # a step at rate 0
        held = LossConfig(**record.config["loss"])
        assert (held.label_smoothing, held.bce) == (0.2 if "smooth" in str(overrides) else 0, len(overrides) == 2)
    plain, smoothed, binary = told.values()
    assert len({figures["train/loss"] for figures in told.values()}) == 3
    assert plain["val/loss"] == smoothed["val/loss"] == binary["val/loss"]
