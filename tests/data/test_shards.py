"""Shards of samples: the same images and labels as timm reads, and one sentence for what cannot be used."""

import tarfile

import numpy as np
import pytest
import torch
from image_files import add
from shard_files import jpegs, shard_config, write_info, write_shard, write_split
from timm.data import create_dataset

from dk_bench.classification.data import ClassificationData
from dk_bench.data import checksum as checksum_module
from dk_bench.data import shard_index
from dk_bench.data.checksum import checksum
from dk_bench.data.shards import shard_order
from dk_bench.data.sources import data_name, open_images
from dk_bench.errors import UserError

pytest.importorskip("webdataset", reason="webdataset is not installed")


@pytest.fixture
def root(tmp_path):
    """Thirty training images in three shards, and six to validate, of three classes."""
    write_split(tmp_path, "train", 30, classes=3, per_shard=12)
    write_split(tmp_path, "val", 6, classes=3, seed=1)
    return tmp_path


TRAIN = "train-{0000..0002}.tar"


def opened(root, train=TRAIN, *overrides, **more):
    return open_images(shard_config(root, train, "val-0000.tar", *overrides), "train", **more)


def fault(root, train=TRAIN, *overrides):
    with pytest.raises(UserError) as error:
        opened(root, train, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("named", [True, False])
def test_samples_are_those_that_timm_reads(root, named):
    write_info(root, train=[12, 12, 6], val=[6])
    place = "train" if named else f"{TRAIN}|30"
    theirs = create_dataset("wds/tiny", root=str(root), split=place, is_training=False)
    images = opened(root, place)
    assert len(images) == 30 and images.classes == ["0", "1", "2"]
    for (image, label), (other, same) in zip(images, theirs, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other)) and label == same
    assert images.files.names[29] == "000029.jpg" and images.files.lengths == [12, 12, 6]


def test_labels_of_a_field_and_samples_without(root):
    """As timm has it: where ``_info.json`` names the field, and a negative label says that there is none."""
    write_shard(root / "more-0000.tar", jpegs(6), [0, -1, 1, 2, -1, 2])
    write_info(root, more=[6])
    (root / "_info.json").write_text(
        (root / "_info.json").read_text().replace('"name"', '"alt_label": "label", "name"')
    )
    images = opened(root, "more")
    assert [label for _, label in images] == [0, 1, 2, 2] and images.left_out == 2
    theirs = create_dataset("wds/tiny", root=str(root), split="more", is_training=False)
    assert [label for _, label in theirs] == [0, 1, 2, 2]


@pytest.mark.parametrize("label", [1.5, True, "1", None])
def test_label_of_a_field_that_is_no_integer(root, label):
    write_shard(root / "more-0000.tar", jpegs(2), [0, label])
    write_info(root, more=[2])
    (root / "_info.json").write_text(
        (root / "_info.json").read_text().replace('"name"', '"alt_label": "label", "name"')
    )
    assert "expected an object with a number as 'label'" in fault(root, "more")


def test_names_of_classes(root):
    (root / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    config = shard_config(root, TRAIN, "val-0000.tar", f"data.class_names={root}/names.txt", "data.batch_size=5")
    data = ClassificationData(config, 0)
    assert data.classes == data.train_images.classes == ["ant", "bee", "cat", "dog"]
    assert data_name(config) == "wds/tiny"


def test_index_is_made_once_and_again_for_shards_that_have_changed(root, tmp_path, monkeypatch):
    folder, read, index_shard = tmp_path / "kept", [], shard_index.index_shard
    monkeypatch.setattr(shard_index, "index_shard", lambda path, **more: read.append(path) or index_shard(path, **more))
    first = opened(root, kept=folder)
    before = checksum(first)
    assert len(read) == 3 and len(list(folder.glob("*.shards"))) == 1
    again = opened(root, kept=folder)
    assert len(read) == 3 and list(again.files.names) == list(first.files.names)
    assert checksum(again) == before
    write_shard(root / "train-0001.tar", jpegs(5, seed=7), [0, 1, 2, 0, 1])
    changed = opened(root, kept=folder)
    assert len(read) == 6 and len(changed) == 23
    assert changed[13][1] == 1 and checksum(changed) != before
    for kept in folder.glob("*.shards"):
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(opened(root, kept=folder)) == 23 and len(read) == 9  # damaged: made anew
    assert len(opened(root, kept=folder)) == 23 and len(read) == 9


def test_index_that_was_cut_off_goes_on(root, tmp_path, monkeypatch):
    read, index_shard = [], shard_index.index_shard

    def until_the_power_is_cut(path, **more):
        if path.endswith("train-0002.tar") and len(read) < 3:
            read.append("cut")
            raise RuntimeError("power cut")
        read.append(path[-8:])
        return index_shard(path, **more)

    monkeypatch.setattr(shard_index, "index_shard", until_the_power_is_cut)
    monkeypatch.setattr(shard_index, "THREADS", 1)
    monkeypatch.setattr(shard_index, "WRITE_SECONDS", 0)
    with pytest.raises(RuntimeError, match="power cut"):
        opened(root, kept=tmp_path / "kept")
    assert len(opened(root, kept=tmp_path / "kept")) == 30
    assert read == ["0000.tar", "0001.tar", "cut", "0002.tar"]


def test_index_needs_no_folder_that_can_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(opened(root, kept=tmp_path / "file" / "below")) == 30


@pytest.mark.parametrize("many", [100_000, 2])
def test_checksum_of_shards(root, monkeypatch, many):
    monkeypatch.setattr(checksum_module, "MANY", many)
    before = checksum(opened(root))
    assert before == checksum(opened(root)) != checksum(opened(root, "train-{0000..0001}.tar"))


def test_orders_of_shards_are_permutations():
    generator = np.random.default_rng(0)
    for trial in range(50):
        lengths = generator.integers(1, 9, generator.integers(1, 30)).tolist()
        window, total = int(generator.integers(1, 60)), sum(lengths)
        draw = shard_order(lengths, window)
        found = draw(torch.Generator().manual_seed(trial))
        assert sorted(found.tolist()) == list(range(total)) and torch.equal(
            found, draw(torch.Generator().manual_seed(trial))
        )
        shard = np.repeat(np.arange(len(lengths)), lengths)[found.numpy()]
        spans = [np.ptp(np.flatnonzero(shard == number)) + 1 for number in range(len(lengths))]
        together = -(-len(lengths) // min(len(lengths), max(1, total // window)))  # shards of a window, at most
        assert max(spans) <= together * max(lengths)


def test_run_on_shards(root, tmp_path, capsys):
    """From the command line: the index lies beside decoded images, the record says which data, eval finds the same."""
    from dk_bench.cli import main
    from dk_bench.runs.record import find_records, read_record

    write_info(root, train=[12, 12, 6], val=[6])
    (root / "shards.yaml").write_text("data: {source: timm, reader: wds/tiny, train: train, val: val}")
    small = "data.size=32 data.batch_size=6 data.workers=0 data.cache_gb=0 model.name=test_resnetdw optim.epochs=1"
    more = f"optim.warmup_epochs=0 wandb.mode=disabled trainer.accelerator=cpu data.root={root} output={tmp_path}/runs"
    assert main(["train", str(root / "shards.yaml"), *small.split(), *more.split()]) == 0
    (path,) = find_records([tmp_path / "runs"])
    record = read_record(path)
    assert (
        record.status == "finished" and record.data["name"] == "wds/tiny" and record.data["classes"] == ["0", "1", "2"]
    )
    assert (record.data["train_images"], record.data["decoded"]["train"]) == (30, "every time")
    assert len(list((tmp_path / "runs" / "decoded").glob("*.shards"))) == 2
    trained = capsys.readouterr().out
    assert main(["eval", str(path.parent / "last.ckpt")]) == 0
    evaluated = capsys.readouterr().out
    assert f"top-1 {record.metrics['final']['val/top1']:.2f} %" in trained and "of 6 images" in trained
    assert f"top-1 {record.metrics['final']['val/top1']:.2f} %" in evaluated


def test_splits_share_no_shard(root):
    data = ClassificationData(shard_config(root, TRAIN, "train-0002.tar", "data.batch_size=5"), 0)
    with pytest.raises(UserError, match="6 of the 6 validation images are training images too: 000024.jpg"):
        data.check_splits()


def damaged(root, change):
    path = root / "train-0001.tar"
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def flip(content):
    content[512 * 3 + 100] ^= 1
    return content


def sample(*files):
    """A function that writes a shard of these files."""

    def write(root):
        with tarfile.open(root / "train-0001.tar", "w") as tar:
            for name, content in files:
                add(tar, name, content)

    return write


JPEG = next(jpegs(1))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda root: (root / "train-0001.tar").unlink(), "of whose 3 shards 1 are missing: "),
        (lambda root: damaged(root, lambda content: content[:9000]), "train-0001.tar cannot be used: "),
        (lambda root: damaged(root, flip), "train-0001.tar cannot be used: it is damaged after 000012"),
        (lambda root: damaged(root, lambda content: b""), "train-0001.tar cannot be used: "),
        (lambda root: damaged(root, lambda content: b"\x1f\x8b" + content), "it is compressed, expected a plain one"),
        (sample(("a.jpg", JPEG)), "sample a has no label, only jpg; expected a.cls"),
        (sample(("a.cls", b"0"), ("a.txt", b"")), "sample a has no image, only cls, txt; expected one as a.jpg"),
        (sample(("a.jpg", b""), ("a.cls", b"0")), "a.jpg is an empty file"),
        (sample(("a.jpg", JPEG), ("a.cls", b"ant")), "a.cls holds b'ant', expected a number"),
        (sample(("a.jpg", JPEG), ("a.cls", b"-1")), "a.cls holds -1, expected a number from 0"),
        (sample(("a.jpg", JPEG), ("a.cls", b"0"), ("a.JPG", JPEG)), "a.JPG is there twice"),
        (sample(*2 * [("a.jpg", JPEG), ("b.jpg", JPEG)]), "sample a has no label"),
        (
            sample(*[(f"{name}.{end}", content) for name in "aba" for end, content in (("jpg", JPEG), ("cls", b"0"))]),
            "sample a is there twice",
        ),
        (sample(("a.jpg", JPEG), ("a.cls", b"4")), "no images with the label 3 in "),
    ],
)
def test_what_shards_must_not_hold_is_named(root, spoil, text):
    spoil(root)
    assert text in fault(root)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("other-{0000..0001}.tar", "of whose 2 shards 2 are missing: "),
        ("train-*.tar", "expected a pattern of shards, as train-{0000..1023}.tar"),
        ("train", "expected a pattern of shards, as train-{0000..1023}.tar, or a split that _info.json lists"),
        ("train-{0000..0001.tar", "expected a pattern of shards"),
        ("train-0000.tar::train-0000.tar", "train-0000.tar twice"),
        ("train-0000.tar::./train-0000.tar", "train-0000.tar twice"),
        (f"{TRAIN}|30|30", "expected a number of samples behind |, found '30|30'"),
        (f"{TRAIN}|31", "but the shards hold 30 samples"),
        ("https://example.org/train-0000.tar", "expected shards in files"),
        ("pipe:cat train-0000.tar", "expected shards in files"),
    ],
)
def test_places_that_name_no_shards(root, place, text):
    found = fault(root, place)
    assert found.startswith("key 'data.train' is ") and text in found


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_shard_that_is_reached_by_another_name_is_named_with_both(root, link):
    getattr(root / "train-0003.tar", link)(root / "train-0001.tar")
    names = f"which names {root}/train-0001.tar = {root}/train-0003.tar twice"
    assert fault(root, "train-{0000..0003}.tar").endswith(names)


def test_other_bad_settings_of_shards(root):
    write_info(root, train=[12, 12, 7])
    assert "train-0002.tar holds 6 samples, but _info.json says 7" in fault(root)
    assert "or one of the splits train of " in fault(root, "validation")
    assert fault(root, TRAIN, "data.root=s3://bucket/place").startswith("key 'data.root' is 's3://bucket/place', ")
    write_info(root, train=[12, 12, 6])
    (root / "names.txt").write_text("ant\nbee")
    short = fault(root, TRAIN, f"data.class_names={root}/names.txt")
    assert "train-0000.tar: image 000002.jpg has the label 2, expected 0 to 1" in short
    (root / "names.txt").write_text("ant\nAnt\nbee")
    assert "differ only in capitals" in fault(root, TRAIN, f"data.class_names={root}/names.txt")
    assert "cannot be read: No such file" in fault(root, TRAIN, "data.class_names=nowhere.txt")
    assert "only shards" in fault(root, "x", "data.reader=torch/cifar10", "data.class_names=names.txt")


def test_classes_that_differ_between_splits(root):
    write_split(root, "val", 8, classes=4, seed=2)
    with pytest.raises(
        UserError, match=r"train .*3 classes.* and val .*4 classes.* differ in their classes: only in val: 3"
    ):
        ClassificationData(shard_config(root, TRAIN, "val-0000.tar", "data.batch_size=5"), 0).train_images  # noqa: B018


def test_shard_that_has_become_shorter_is_named(root):
    images = opened(root)
    path = root / "train-0002.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        UserError, match=r"train-0002\.tar: image 000029\.jpg cannot be read: the tar has become shorter"
    ):
        images[29]
