"""Decoded images are kept: where, how large, and that no file of them is stale, damaged or half written."""

import json
import multiprocessing
import os
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_files import config_for, jpeg, make_folder, make_tar
from training_cases import tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data import decoded
from dk_bench.data.checksum import SAMPLE
from dk_bench.data.decoded import EVERY_TIME, FILE, MEMORY, Encoded, content_key, keep
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError
from dk_bench.training import run_folder, train


@pytest.fixture
def odd(tmp_path):
    """Images of several sizes and kinds, none of them square."""
    folder = make_folder(tmp_path / "train")
    noise = np.random.default_rng(0).integers(0, 256, (21, 34), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "ant" / "grey.png")
    Image.fromarray(noise.astype(np.uint16) * 257).save(folder / "ant" / "sixteen.png")
    Image.fromarray(noise).convert("CMYK").save(folder / "bee" / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise).save(folder / "bee" / "turned.jpg", exif=turned)
    return folder


def kept(place, cache, *overrides):
    config = config_for(place, place, *overrides)
    return keep(open_images(config, "train"), config, cache)


def same(images, place):
    """Whether they are the images of the folder or tar, as they are opened one by one."""
    plain = open_images(config_for(place, place), "train")
    pixels, labels = images.load(range(len(plain)))
    expected = [(np.asarray(image), label) for image, label in (plain[index] for index in range(len(plain)))]
    return len(images) == len(plain) and all(
        np.array_equal(found[0].permute(1, 2, 0).numpy(), image) and label == right
        for found, label, (image, right) in zip(pixels, labels.tolist(), expected, strict=True)
    )


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_kept_images_are_the_decoded_ones(odd, tmp_path, packed):
    place = make_tar(odd) if packed else odd
    for cache, where in (("memory", MEMORY), (tmp_path / "kept", FILE), (tmp_path / "kept", FILE), ("off", EVERY_TIME)):
        images = kept(place, cache)
        assert images.where == where and same(images, place)
        assert same(pickle.loads(pickle.dumps(images)), place)  # as for processes that are not forked
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1


def test_a_file_is_mapped_and_not_decoded_again(odd, tmp_path, monkeypatch):
    kept(odd, tmp_path / "kept")
    moved = odd.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(decoded, "_decode", None)
    images = kept(make_tar(moved), tmp_path / "kept")  # the same content, in the same order
    assert images.where == FILE and same(images, moved)
    content = pickle.dumps(images)
    assert len(content) < 2000 < images.load([0])[0][0].numel()


@pytest.mark.parametrize("change", ["content", "order", "size"])
def test_other_images_are_another_file(tmp_path, change):
    folder = make_folder(tmp_path / "train")
    first = kept(folder, tmp_path / "kept")
    changed = folder / "ant" / "1.jpg"
    before = changed.stat()
    if change == "content":  # as many bytes, and as old
        other = bytearray(changed.read_bytes())
        other[-20] ^= 1
        changed.write_bytes(other)
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "order":
        changed.rename(folder / "ant" / "9.jpg")
    else:
        changed.write_bytes(jpeg(77, (9, 11)))
    second = kept(folder, tmp_path / "kept")
    assert same(second, folder) and not same(first, folder)
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 2


def test_another_decoder_makes_another_file(odd, monkeypatch):
    images = open_images(config_for(odd, odd), "train")
    key = content_key(images)
    assert key == content_key(images)
    monkeypatch.setattr(Image, "__version__", "0.0")
    assert content_key(images) != key


def damage_pixels(file):
    content = bytearray(file.with_suffix(".pixels").read_bytes())
    content[100] ^= 1
    file.with_suffix(".pixels").write_bytes(content)


def change_description(**values):
    def change(file):
        path = file.with_suffix(".json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def turn_sizes(file):  # all fits, but for the checksum
    sizes = json.loads(file.with_suffix(".json").read_text())["sizes"]
    change_description(sizes=[size[::-1] for size in sizes])(file)


DAMAGES = {
    "a bit": damage_pixels,
    "cut short": lambda file: os.truncate(file.with_suffix(".pixels"), 1000),
    "no pixels": lambda file: file.with_suffix(".pixels").unlink(),
    "half a description": lambda file: os.truncate(file.with_suffix(".json"), 30),
    "another description": lambda file: file.with_suffix(".json").write_text("[]"),
    "other sizes": change_description(sizes=[[2, 2, 2]]),
    "turned sizes": turn_sizes,
    "fewer images": change_description(images=3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_written_anew(odd, tmp_path, damage):
    kept(odd, tmp_path / "kept")
    (pixels,) = (tmp_path / "kept").glob("*.pixels")
    DAMAGES[damage](pixels)
    with pytest.warns(UserWarning, match=r"\.pixels: damaged, so the images are decoded anew"):
        assert same(kept(odd, tmp_path / "kept"), odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(kept(odd, tmp_path / "kept"), odd)


@pytest.fixture
def elsewhere(monkeypatch):
    """Starts another process that keeps images, and waits until it calls a function, which then takes that long."""
    fork, started = multiprocessing.get_context("fork"), []

    def start(place, folder, name, seconds):
        plain, called = getattr(decoded, name), fork.Event()

        def slow(*arguments):
            called.set()
            time.sleep(seconds)
            return plain(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(decoded, name, slow)
            started.append(fork.Process(target=kept, args=(place, folder)))
            started[-1].start()
        assert called.wait(60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def test_of_two_processes_one_decodes_and_the_other_waits(odd, tmp_path, elsewhere, monkeypatch):
    other = elsewhere(odd, tmp_path / "kept", "open_atomically", 0.5)  # and has the lock
    monkeypatch.setattr(decoded, "_decode", None)
    assert same(kept(odd, tmp_path / "kept"), odd)
    other.join()
    assert other.exitcode == 0 and not list((tmp_path / "kept").glob(".*.tmp"))


def test_what_a_killed_process_left_is_not_read(odd, tmp_path, elsewhere):
    other = elsewhere(odd, tmp_path / "kept", "write_atomically", 600)  # pixels are there, and no description
    other.kill()
    (pixels,) = (tmp_path / "kept").glob("*.pixels")
    pixels.write_bytes(b"x" * pixels.stat().st_size)
    leftover = pixels.with_name(f".{pixels.name}.1.tmp")
    leftover.write_bytes(b"half")
    assert same(kept(odd, tmp_path / "kept"), odd) and not leftover.exists()


def test_images_that_change_while_they_are_decoded_are_an_error(odd, tmp_path, monkeypatch):
    plain = decoded._decode

    def decode(*arguments):
        (odd / "ant" / "0.jpg").write_bytes(jpeg(1234))
        return plain(*arguments)

    monkeypatch.setattr(decoded, "_decode", decode)
    with pytest.raises(UserError, match=r"train: its images changed while they were read"):
        kept(odd, tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.json"))


def test_splits_that_are_too_large_are_decoded_every_time(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "train")  # six images of 3 x 30 x 40 bytes
    size = 6 * 3600 / 1e9
    for cache in ("memory", tmp_path / "kept"):
        assert kept(folder, cache, f"data.cache_gb={size}").where != EVERY_TIME
        assert kept(folder, cache, f"data.cache_gb={0.99 * size}").where == EVERY_TIME
    # Where the estimate is too low, decoding stops at the limit, and a file that is there already is none to read.
    monkeypatch.setattr(decoded, "_estimate", lambda images: 0)
    assert kept(folder, tmp_path / "kept", f"data.cache_gb={0.99 * size}").where == EVERY_TIME
    (folder / "ant" / "0.jpg").write_bytes(jpeg(99))
    for cache in ("memory", tmp_path / "kept"):
        assert kept(folder, cache, f"data.cache_gb={0.99 * size}").where == EVERY_TIME
    assert len(list((tmp_path / "kept").glob("*.pixels"))) == 1


def test_size_is_estimated_by_images_that_lie_spread_over_all():
    class Wide:
        """Every image is as wide as its number."""

        asked = []

        def __len__(self):
            return 3200

        def __getitem__(self, index):
            self.asked.append(index)
            return Image.new("RGB", (index + 1, 1)), 0

    images = Wide()
    assert decoded._estimate(images) == pytest.approx(3 * 3200 * 3201 / 2, rel=0.05)
    assert len(images.asked) == SAMPLE and max(images.asked) > 3000


def test_a_file_is_read_where_nothing_can_be_written(odd, tmp_path, monkeypatch):
    kept(odd, tmp_path / "kept")

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoded, "wait_for", refused)
    assert same(kept(odd, tmp_path / "kept"), odd)
    with pytest.raises(UserError, match=r"cannot be kept in .*other: Permission denied"):
        kept(odd, tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_named(odd, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"'data\.cache': decoded images cannot be kept in .*kept: Not a directory"):
        kept(odd, tmp_path / "file" / "kept")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.cache=", "'data.cache' is '', expected auto, memory, off, or a folder"),
        ("data.cache=none", "'data.cache' is 'none', expected auto, memory, off, or a folder"),
        ("data.cache=Memory", "'data.cache' is 'Memory', expected auto, memory, off, or a folder"),
        ("data.cache_gb=-1", "'data.cache_gb' is -1.0, expected gigabytes, 0 or more"),
        ("data.cache_gb=big", "data.cache_gb"),
    ],
)
def test_values_out_of_range_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["memory", "off", "folder"])
def test_batches_are_the_same_wherever_images_are_kept(odd, tmp_path, cache, workers):
    (tmp_path / "val" / "ant").mkdir(parents=True)
    (tmp_path / "val" / "bee").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "val" / name / "0.jpg").write_bytes(jpeg(900 + ord(name[0])))

    def batches(*overrides):
        data = ClassificationData(config_for(odd, tmp_path / "val", "data.batch_size=4", *overrides), seed=1)
        loader = data.train_dataloader()
        out = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            out += loader
        return [*out, *data.val_dataloader()]

    place = tmp_path / "kept" if cache == "folder" else cache
    found, expected = batches(f"data.cache={place}", f"data.workers={workers}"), batches("data.cache=off")
    assert len(found) == 5
    for (images, labels), (others, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_runs_share_a_file_beside_them_and_records_say_so(tmp_path):
    for split, seed in (("train", 0), ("val", 50)):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                (tmp_path / split / name / f"{index}.jpg").write_bytes(jpeg(seed + 10 * number + index))
    files = (
        "data.source=timm",
        f"data.train={tmp_path}/train",
        f"data.val={tmp_path}/val",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
        "model.name=test_resnetdw",
        "data.size=16",
    )
    runs = tmp_path / "runs"
    records = [
        train(tiny(runs, *files, f"seed={seed}", f"data.cache={cache}"))
        for seed, cache in enumerate(("auto", "auto", "off"))
    ]
    assert [record.data["decoded"] for record in records] == [{"train": FILE, "val": FILE}] * 2 + [
        {"train": EVERY_TIME, "val": EVERY_TIME}
    ]
    assert len(list((runs / "decoded").glob("*.pixels"))) == 2
    again = train(tiny(runs, *files, "seed=2", "data.cache=memory", "output=" + str(tmp_path / "again")))
    final, expected = (record.metrics["final"] | {"seconds": 0} for record in (again, records[2]))
    assert final == expected and again.config_hash == records[2].config_hash
    assert again.data["decoded"] == {"train": MEMORY, "val": MEMORY}
    assert run_folder(tiny(runs, *files)).parent == runs


def test_procedural_images_are_kept_in_memory(tmp_path):
    config = tiny(tmp_path)
    data = ClassificationData(config.data, 0, cache=tmp_path / "kept")
    assert data.train_pixels.where == MEMORY and not (tmp_path / "kept").exists()
    assert ClassificationData(config.data, 0, cache="off").train_pixels.where == EVERY_TIME
    assert isinstance(keep(data.train_images, tiny(tmp_path, "data.cache_gb=0.00001").data), Encoded)
