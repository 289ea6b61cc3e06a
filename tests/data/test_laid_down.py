"""Augmented epochs in files: the same bits, and used for nothing but the epoch, seed and augmentation they are of."""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest
import torch
from test_files import config_for, make_folder
from training_cases import tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.config import AugmentConfig
from dk_bench.data import laid_down
from dk_bench.data.laid_down import LaidDown
from dk_bench.data.order import Augmented
from dk_bench.data.transforms import TrainTransform
from dk_bench.training import train

KEYS = [(1, 3), (1, 0), (1, 2), (1, 1)]


@pytest.fixture
def config(tmp_path):
    folder = str(make_folder(tmp_path / "train"))
    return config_for(folder, folder, f"data.cache={tmp_path / 'cache'}")


def batches(config, seed=0, keys=KEYS):
    """From a file, if there is one, and computed."""
    images = ClassificationData(config, seed).augmented
    assert isinstance(images, LaidDown)
    return images.__getitems__(keys), Augmented(images.images, TrainTransform(config), seed).__getitems__(keys)


def spoil(config, seed, epoch):
    """Lays an epoch down and puts other levels in its place, by which reading it shows."""
    images = ClassificationData(config, seed).augmented
    images.write(epoch)
    path = images.path(epoch)
    path.write_bytes(bytes(255 - level for level in path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "changes", [{"color_jitter": 0.0}, {"color_jitter": 0.4}, {"auto_augment": "rand-m9", "random_erasing": 0.8}]
)
def test_same_bits(config, changes, monkeypatch):
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, **changes))
    ClassificationData(config, 0).augmented.write(1)
    with monkeypatch.context() as without:
        without.setattr(TrainTransform, "__call__", None)  # nothing is augmented
        images, labels = ClassificationData(config, 0).augmented.__getitems__(KEYS)
    _, (expected, expected_labels) = batches(config)
    assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


def test_no_other_epoch_seed_or_augmentation_is_read(config):
    spoil(config, seed=0, epoch=1)
    read, computed = batches(config)
    assert not torch.equal(read[0], computed[0])
    larger = dataclasses.replace(config, size=20)
    flipped = dataclasses.replace(config, augment=AugmentConfig(scale=None, flip=1.0))
    others = [
        (config, 1, KEYS),
        (larger, 0, KEYS),
        (flipped, 0, KEYS),
        (config, 0, [(2, 1), (2, 0)]),
        (config, 0, [(1, 1), (2, 0)]),
        (config, 0, [1, 0]),
    ]
    for other, seed, keys in others:
        read, computed = batches(other, seed, keys)
        assert torch.equal(read[0], computed[0])


@pytest.mark.parametrize("what", ["torch.__version__", "torch.backends.cpu.get_cpu_capability"])
def test_what_another_program_laid_down_is_not_read(config, what, monkeypatch):
    """Neither of another torch nor by another instruction set: resizes may be rounded otherwise there."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(what, "0.1" if "version" in what else lambda: "OTHER")
        spoil(config, seed=0, epoch=1)
    read, computed = batches(config)
    assert torch.equal(read[0], computed[0])


def test_a_full_disk_leaves_nothing(config, monkeypatch):
    images = ClassificationData(config, 0).augmented

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(laid_down, "TOGETHER", 2)
    with monkeypatch.context() as disk, pytest.raises(OSError, match="no space"):
        disk.setattr(os, "fsync", full)
        images.write(1)
    assert not [*images.path(1).parent.glob(f"*{images.path(1).name}*")]
    images.write(1)
    read, computed = batches(config)
    assert images.path(1).exists() and torch.equal(read[0], computed[0])


def test_a_file_of_another_size_is_not_read(config):
    path = spoil(config, seed=0, epoch=1)
    os.truncate(path, path.stat().st_size - 1)
    read, computed = batches(config)
    assert torch.equal(read[0], computed[0])


def test_a_run_trains_to_the_same_weights(tmp_path):
    settings = ("model.name=test_resnetdw", "optim.epochs=2", f"data.cache={tmp_path / 'cache'}")
    plain = train(tiny(tmp_path / "plain", *settings))
    config = tiny(tmp_path / "files", *settings)
    for epoch in range(2):
        ClassificationData(config.data, config.seed).augmented.write(epoch)
    laid = train(config)
    plain, laid = ([{**epoch, "seconds": 0} for epoch in record.metrics["epochs"]] for record in (plain, laid))
    assert plain == laid
