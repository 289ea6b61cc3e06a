"""Parts of the tests of a user's own Trainer, for classification and detection."""

import hashlib

import pytorch_lightning as pl
import torch

QUIET = dict(
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)


def trainer(epochs=2, **settings):
    """Lightning's, but for what it would print and write."""
    return pl.Trainer(**{**QUIET, "max_epochs": epochs, **settings})


def images_in(batch):
    """One text an image, which tells it from others and its augmentations apart; in detection it begins with the id."""
    detection = isinstance(batch, dict)
    images = batch["inputs"] if detection else batch[0]
    names = [f"{sample.img_id}:" for sample in batch["data_samples"]] if detection else [""] * len(images)
    pixels = [hashlib.sha1(image.float().numpy().tobytes()).hexdigest()[:12] for image in images]
    return [name + text for name, text in zip(names, pixels, strict=True)]


class Watch(pl.Callback):
    """What a fit sees: images of every batch, learning rates of every step, figures of every validation."""

    def __init__(self, save_after=None, path=None):
        self.batches, self.validated, self.rates, self.figures = [], [], [], []
        self.save_after, self.path = save_after, path

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(images_in(batch))
        self.rates.append(next_rate(trainer))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(self.batches) == self.save_after:
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.validated += images_in(batch)

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        self.figures.append({name: float(v) for name, v in trainer.callback_metrics.items() if name[:4] == "val/"})


def next_rate(trainer):
    """The largest learning rate of the next step."""
    return max(group["lr"] for group in trainer.optimizers[0].param_groups)


def fit_parts(module, data, ckpt_path=None, watch=None, **settings):
    """What the callback saw, the trainer and the module."""
    watch = watch or Watch()
    own = trainer(**{**settings, "callbacks": [*settings.get("callbacks", ()), watch]})
    own.fit(module, data, ckpt_path=ckpt_path)
    return watch, own, module


def assert_same_weights(module, other):
    for (name, value), (_, expected) in zip(module.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name
