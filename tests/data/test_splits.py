"""Splits: those that a reader does not heed are refused, and no image is in both."""

import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from image_files import add, data_config, pack, picture, splits
from PIL import Image

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data import sources as sources_module
from dk_bench.data import splits as splits_module
from dk_bench.data.sources import data_name, open_images
from dk_bench.errors import UserError


def named(reader, train="train", val="test", *overrides):
    settings = [
        "data.source=timm",
        f"data.reader={reader}",
        f"data.train={train}",
        f"data.val={val}",
        "data.size=16",
        "data.batch_size=2",
        "data.workers=0",
    ]
    return load_config(None, [*settings, *overrides]).data


def check(config):
    ClassificationData(config, 0).check_splits()


def shared(config):
    with pytest.raises(UserError) as error:
        check(config)
    return str(error.value)


# Files


def test_different_images_pass(tmp_path):
    check(data_config(splits(tmp_path)))
    check(data_config(tmp_path, f"data.train={pack(tmp_path / 'train')}"))


def test_the_same_folder_or_tar_for_both(tmp_path):
    splits(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "train")
    pack(tmp_path / "train")
    for train, val in (("train", "train"), ("train", "again"), ("train.tar", "train.tar"), ("train.tar", "train")):
        text = shared(data_config(tmp_path, f"data.train={tmp_path}/{train}", f"data.val={tmp_path}/{val}"))
        assert "keys data.train and data.val: 6 of the 6 validation images are training images too" in text
        assert "ant/0.png (val) is ant/0.png (train), " in text and text.count("(val)") == 3 and ", ...;" in text


@pytest.mark.parametrize("how", [os.symlink, os.link, shutil.copy])
def test_one_image_in_both(tmp_path, how, monkeypatch):
    splits(tmp_path)
    how(tmp_path / "train" / "bee" / "2.png", tmp_path / "val" / "bee" / "z.png")
    text = "1 of the 7 validation images are training images too: bee/z.png (val) is bee/2.png (train); expected no"
    assert text in shared(data_config(tmp_path))
    monkeypatch.setattr(splits_module, "SMALL", 12)  # then some are looked at, here all
    assert text in shared(data_config(tmp_path))
    monkeypatch.setattr(splits_module, "MOST", 0)  # then only paths are compared
    if how is os.symlink:
        assert text in shared(data_config(tmp_path))
    else:
        check(data_config(tmp_path))


def test_images_of_one_size_in_bytes_are_told_apart(tmp_path):
    splits(tmp_path, suffix="bmp")
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1
    check(data_config(tmp_path))


def test_an_image_that_has_gone_is_named(tmp_path):
    data = ClassificationData(data_config(splits(tmp_path)), 0)
    data.train_images  # noqa: B018
    (tmp_path / "val" / "bee" / "1.png").unlink()
    with pytest.raises(UserError, match=r"val: image bee/1\.png cannot be read: No such file"):
        data.check_splits()


def test_training_refuses_and_evaluation_does_not_look(tmp_path):
    from dk_bench.training import run_folder, train

    splits(tmp_path)
    picture(tmp_path / "val" / "ant" / "9.png", seed=0)  # is train/ant/0.png
    data = [f"data.{split}={tmp_path}/{split}" for split in ("train", "val")]
    config = load_config(
        None,
        [
            "data.source=timm",
            *data,
            "data.size=32",
            "data.batch_size=2",
            "data.workers=0",
            f"output={tmp_path}/runs",
            "model.name=test_resnetdw",
            "optim.epochs=1",
            "optim.warmup_epochs=0",
            "wandb.mode=disabled",
        ],
    )
    with pytest.raises(UserError, match=r"ant/9\.png \(val\) is ant/0\.png \(train\)"):
        train(config)
    assert not (run_folder(config) / "record.json").exists()
    module = ClassificationData(config.data, 0)
    with pytest.raises(UserError, match=r"ant/9\.png \(val\)"):
        module.train_dataloader()
    assert len(list(module.val_dataloader())) == 4


def test_classes_that_look_the_same(tmp_path):
    splits(tmp_path, ("ant", "bee"))
    (tmp_path / "val" / "ant").rename(tmp_path / "val" / "Ant")
    text = shared(data_config(tmp_path))
    assert "only in train: ant; only in val: Ant; they are the same but for capitals" in text


# Named data sets


@pytest.fixture
def cifar(tmp_path):
    """Twenty images of each split in the files of torchvision's CIFAR-10."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(file, seed, count=4):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "labels": [index % 10 for index in range(count)]}))

    for number in range(1, 6):
        write(f"data_batch_{number}", number)
    write("test_batch", 9, 20)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{index}" for index in range(10)]}))
    return write


@pytest.fixture
def whole_cifar(cifar, tmp_path, monkeypatch):
    """A configuration of it, for names of splits; what torchvision knows of the real files is not compared."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets import cifar as module

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    return lambda train, val: named("torch/CIFAR10", train, val, f"data.root={tmp_path}")


def test_splits_by_the_names_that_are_heeded(whole_cifar):
    config = whole_cifar("train", "validation")
    train, val = open_images(config, "train"), open_images(config, "val")
    assert len(train) == len(val) == 20 and train.classes == [f"class{index}" for index in range(10)]
    assert not np.array_equal(np.asarray(train[0][0]), np.asarray(val[0][0]))
    check(config)


@pytest.mark.parametrize("split", ["trian", "Train", "train[:50%]", "all", "dev"])
@pytest.mark.parametrize("key", ["train", "val"])
def test_splits_that_are_not_heeded_are_refused(whole_cifar, split, key):
    config = whole_cifar(**{"train": "train", "val": "test", key: split})
    with pytest.raises(UserError, match=rf"key 'data\.{key}' is .*, expected a split of torch/CIFAR10: train or test"):
        open_images(config, key)


def test_misspelt_split_of_a_data_set_of_two_is_told_before_it_is_looked_for(tmp_path):
    for reader in ("torch/qmnist", "torch/KMNIST"):
        with pytest.raises(UserError, match=f"'data.train' is 'trian', expected a split of {reader}: train or test"):
            open_images(named(reader, "trian", "test", f"data.root={tmp_path}"), "train")


def test_one_split_for_both_by_one_name_or_two(whole_cifar, monkeypatch):
    assert "both are torch/CIFAR10, split 'train'" in shared(whole_cifar("train", "train"))
    assert "20 of the 20 validation images are training images too" in shared(whole_cifar("test", "val"))
    monkeypatch.setattr(splits_module, "SMALL", 10)
    assert "hold the same 20 images" in shared(whole_cifar("test", "val"))
    check(whole_cifar("train", "val"))


def test_few_equal_images_of_published_data_are_told(whole_cifar, cifar, monkeypatch):
    cifar("test_batch", 1, 4)  # the first batch of train
    assert "4 of the 4" in shared(whole_cifar("train", "test"))
    monkeypatch.setattr(splits_module, "FEW", 1.0)
    with pytest.warns(UserWarning, match="4 of the 4 validation images are training images too, by their contents"):
        check(whole_cifar("train", "test"))


@pytest.mark.parametrize("reader", ["torch/image_folder", "torch/folder", "Torch/Image_Folder"])
def test_image_folders_under_a_name_are_refused(tmp_path, reader):
    splits(tmp_path)
    with pytest.raises(UserError, match="leave data.reader empty, and give the folders as data.train="):
        open_images(named(reader, "train", "val", f"data.root={tmp_path}"), "train")


@pytest.mark.parametrize("reader", ["folder", "hfsd/food", "imagenet", "hfds/", "torch"])
def test_readers_that_timm_takes_for_a_folder_are_refused(tmp_path, reader):
    splits(tmp_path)
    with pytest.raises(UserError, match=r"key 'data\.reader' is .*, expected wds/NAME, hfds/NAME or torch/NAME, or"):
        open_images(named(reader, "train", "val", f"data.root={tmp_path}/train"), "train")


class Torchvision:
    """A set of files as torchvision's ImageNet is: classes of several names each, and a loader of its own."""

    def __init__(self, folder, label=0):
        self.samples, self.loader = [(str(picture(folder / "0.png")), label)], None
        self.wnids = ["n01", "n02"]
        self.classes, self.class_to_idx = [("a", "b"), ("b",)], {"a": 0, "b": 1, "c": 1}

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return self.loader(path), label


def opened(monkeypatch, dataset, reader="torch/imagenet"):
    monkeypatch.setattr(sources_module, "_create", lambda config, split: dataset)
    return sources_module.NamedImages(named(reader), "train")


def test_classes_of_several_names_count_once(tmp_path, monkeypatch):
    assert opened(monkeypatch, Torchvision(tmp_path)).classes == ["n01", "n02"]


def test_files_of_named_sets_are_opened_as_all_others(tmp_path, monkeypatch):
    images = opened(monkeypatch, Torchvision(tmp_path))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "0.png", exif=exif)
    assert images[0][0].size == (5, 9)
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.png cannot be read: the file is empty"):
        images[0]


def test_labels_that_no_class_has_are_named(tmp_path, monkeypatch):
    images = opened(monkeypatch, Torchvision(tmp_path, label=-1))
    with pytest.raises(UserError, match="image 0 has the label -1, expected 0 to 1; a split without labels cannot"):
        images[0]


def test_files_of_named_sets_are_compared_by_path(tmp_path, monkeypatch):
    train, val = opened(monkeypatch, Torchvision(tmp_path)), opened(monkeypatch, Torchvision(tmp_path))
    val.source += "2"
    with pytest.raises(UserError, match=r"1 of the 1 validation images are training images too: .*0\.png \(val\)"):
        splits_module.check_apart(train, val)


class HuggingFace:
    """A data set as timm makes one of Hugging Face's: a reader gives streams of bytes."""

    class_to_idx = {"a": 0, "b": 1}

    def __init__(self, contents):
        self.reader, self.contents = self, contents

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return io.BytesIO(self.contents[index]), 1


def test_images_of_hugging_face_readers_are_compared_by_their_bytes(tmp_path, monkeypatch):
    first, second = (picture(tmp_path / f"{seed}.png", seed).read_bytes() for seed in (1, 2))
    train, val, other = (
        opened(monkeypatch, HuggingFace(contents), "hfds/x") for contents in ([first], [first], [second])
    )
    assert train[0][1] == 1 and train[0][0].size == (12, 10)
    for images in (val, other):
        images.source += ", another"
    splits_module.check_apart(train, other)
    with pytest.raises(UserError, match="1 of the 1 validation images are training images too"):
        splits_module.check_apart(train, val)


def test_splits_in_tars_are_compared_by_content(tmp_path):
    content = [picture(tmp_path / "x" / f"{seed}.png", seed).read_bytes() for seed in range(6)]
    for split, chosen in (("train", (0, 1, 2)), ("val", (3, 4, 1))):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for index in chosen:
                add(tar, f"{'ant' if index % 2 else 'bee'}/{split}{index}.png", content[index])
    config = data_config(tmp_path, *(f"data.{split}={tmp_path}/{split}.tar" for split in ("train", "val")))
    text = shared(config)
    assert "1 of the 3 validation images are training images too: ant/val1.png (val) is ant/train1.png" in text


# Settings that would not be heeded


@pytest.mark.parametrize("override", ["data.train=/photos/train", "data.val=/photos/val", "data.reader=torch/mnist"])
def test_places_without_their_source_are_refused(override):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"key '{key}' is .* 'data\.source' is 'procedural', which reads no files"):
        ClassificationData(load_config(None, [override]).data, 0).train_images  # noqa: B018


def test_a_root_without_a_reader_is_refused(tmp_path, monkeypatch):
    splits(tmp_path)
    monkeypatch.chdir(tmp_path)  # where train and val are, which data.root does not say
    config = load_config(None, ["data.source=timm", "data.root=/elsewhere", "data.train=train", "data.val=val"]).data
    with pytest.raises(UserError, match=r"key 'data\.root' is '/elsewhere', but 'data\.reader' is empty"):
        open_images(config, "train")


def test_files_are_not_called_procedural():
    """In records and tables, which would else put runs of other images beside those of the procedural ones."""
    for settings, name in (
        ([], "procedural"),
        (["data.name=mine"], "mine"),
        (["data.source=timm", "data.name=mine", "data.train=/a/photos/train", "data.val=/a/photos/val"], "mine"),
        (["data.source=timm", "data.train=/a/photos/train", "data.val=/a/photos/val"], "photos"),
        (["data.source=timm", "data.train=/a/photos/train.tar", "data.val=/b/dev.tar"], "dev"),
        (["data.source=timm", "data.val=/a/photos/val"], "photos"),
        (["data.source=timm", "data.reader=torch/mnist", "data.train=train", "data.val=test"], "torch/mnist"),
    ):
        assert data_name(load_config(None, settings).data) == name
