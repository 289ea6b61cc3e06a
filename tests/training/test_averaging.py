"""The average of the weights: of the configuration's numbers, in a type that loses nothing, untouched by validation."""

import pytest
import pytorch_lightning as pl
import torch
from own_trainer_cases import fit_parts, trainer
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn
from training_cases import tiny

from dk_bench.classification.averaging import PlainAveraging, WarmAveraging, check_averaging, weight_averaging
from dk_bench.classification.data import ClassificationData
from dk_bench.config import EmaConfig, to_dict
from dk_bench.errors import UserError
from dk_bench.training import LitClassifier

SMALL = ("model.name=test_resnetdw", "data.size=16", "data.batch_size=4", "optim.epochs=2")
PLAIN, WARM = EmaConfig(decay=0.9998), EmaConfig(decay=0.9998, warmup=True)


class Watch(Callback):
    """Sees weights and average before a validation, in it, and when it has ended."""

    def __init__(self, averaging):
        self.averaging, self.seen = averaging, []

    def both(self, module):
        average = self.averaging._average_model.module.model.parameters()
        return [[p.detach().clone() for p in parameters] for parameters in (module.model.parameters(), average)]

    def on_validation_start(self, trainer, module):
        self.before = self.both(module)

    def on_validation_batch_start(self, trainer, module, *_):
        self.inside = self.both(module)[0]

    def on_train_epoch_end(self, trainer, module):
        self.seen.append((self.before, self.inside, self.both(module)))


def same(one, other):
    """Tells whether tensors are equal, NaN too, which bfloat16 on a CPU was seen to leave where kernels see padding."""
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ema", [["ema.decay=0.9998"], ["ema.decay=0.9998", "ema.warmup=true"]])
@pytest.mark.parametrize(
    ("precision", "weights", "average"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.float32),
    ],
)
def test_validation_changes_neither_weights_nor_average(tmp_path, precision, weights, average, ema):
    config = tiny(tmp_path, *SMALL, *ema)
    pl.seed_everything(0, verbose=False)
    data = ClassificationData(config.data, config.seed)
    module = LitClassifier(to_dict(config), data.val_images.classes)
    averaging = weight_averaging(config.ema)
    watch = Watch(averaging)
    fit_parts(module, data, callbacks=[averaging, watch], precision=precision, limit_train_batches=3)
    assert len(watch.seen) == 2
    for before, inside, after in watch.seen:
        assert {p.dtype for p in before[0]} == {weights} and {p.dtype for p in before[1]} == {average}
        assert all(same(p, q) for b, a in zip(before, after, strict=True) for p, q in zip(b, a, strict=True))
        assert all(same(p, q.to(weights)) for p, q in zip(inside, before[1], strict=True))
        assert any(not same(p, q.to(weights)) for p, q in zip(*before, strict=True))


OTHERWISE = [
    (WARM, EMAWeightAveraging(decay=0.5)),
    (WARM, EMAWeightAveraging(decay=0.9998)),
    (WARM, WarmAveraging(0.9998, 2.0)),
    (PLAIN, EMAWeightAveraging(decay=0.9997)),
    (PLAIN, EMAWeightAveraging(decay=0.9998, update_every_n_steps=2)),
    (PLAIN, EMAWeightAveraging(decay=0.9998, update_starting_at_step=5)),
    (PLAIN, EMAWeightAveraging(decay=0.9998, use_buffers=False)),
    (PLAIN, WeightAveraging()),
]


@pytest.mark.parametrize(("ema", "callback"), OTHERWISE)
def test_a_callback_that_averages_otherwise_is_refused(ema, callback):
    sentence = r"^key 'ema.decay' is 0.9998: expected Trainer\(callbacks=\[dk_bench.classification.averaging."
    with pytest.raises(UserError, match=sentence):
        check_averaging(ema, trainer(callbacks=[callback]))


def test_callbacks_that_average_as_the_configuration_says_are_taken():
    several = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9998))
    for callback in (EMAWeightAveraging(decay=0.9998), PlainAveraging(0.9998), several):
        check_averaging(PLAIN, trainer(callbacks=[callback]))
    check_averaging(WARM, trainer(callbacks=[WarmAveraging(0.9998)]))
    check_averaging(EmaConfig(), trainer(callbacks=[WeightAveraging()]))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_lightnings_exchange_is_refused_where_it_would_round(precision):
    sentence = rf"^Trainer\(precision='{precision}'\) and callback EMAWeightAveraging, which would round the weights at"
    for ema in (EmaConfig(), PLAIN):
        with pytest.raises(UserError, match=sentence):
            check_averaging(ema, trainer(callbacks=[EMAWeightAveraging(decay=0.9998)], precision=precision))
