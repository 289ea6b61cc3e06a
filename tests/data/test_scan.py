"""Folders and tars: what counts as an image of which class, and that nothing is left out without a word."""

import os
import pickle
import tarfile
import unicodedata

import numpy as np
import pytest
from image_files import add, data_config, pack, picture, splits

from dk_bench.data.layout import Listing, arrange, natural_key
from dk_bench.data.scan import scan
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError


def found(place):
    images = scan(str(place), "data.train")
    return images.classes, len(images.names), images.left_out


def fault(place):
    with pytest.raises(UserError) as error:
        scan(str(place), "data.train")
    assert str(error.value).startswith("key 'data.train': ") and str(place) in str(error.value)
    return str(error.value)


@pytest.fixture(params=["folder", "tar", "tar with its folder"])
def as_given(request):
    """A folder as it is, or packed in one of two ways."""
    if request.param == "folder":
        return lambda folder: folder
    return lambda folder: pack(folder, "." if request.param == "tar" else "deep/down")


# What counts


@pytest.mark.parametrize(
    "suffix", ["webp", "tif", "tiff", "BMP", "gif", "jpe", "jfif", "ppm", "avif", "tga", "pcx", "dib"]
)
def test_every_format_counts(tmp_path, suffix, as_given):
    folder = splits(tmp_path, ("ant",), suffix="png") / "train"
    for index in range(3):
        picture(folder / "cat" / f"{index}.{suffix}", index)
        picture(folder / "ant" / f"more{index}.{suffix}", index)
    assert found(as_given(folder)) == (["ant", "cat"], 9, 0)


def test_order_and_labels(tmp_path, as_given):
    """As timm has it: numbers by their value, letters whatever their case; what is equal then by itself."""
    folder = tmp_path / "train"
    for name in ("class10", "class2", "Class1", "\u00b2"):
        for file in ("b10.png", "b9.png", "A.png", "a.png", "01.png", "1.png"):
            picture(folder / name / file)
    images = scan(str(as_given(folder)), "data.train")
    assert images.classes == ["Class1", "class2", "class10", "\u00b2"]
    assert [name.partition("/")[2] for name in images.names[:6]] == [
        "01.png",
        "1.png",
        "A.png",
        "a.png",
        "b9.png",
        "b10.png",
    ]
    assert images.labels == [index for index in range(4) for _ in range(6)]
    assert sorted(["a\u00b2b", "a2", "\u00b2"], key=natural_key) == ["a2", "a\u00b2b", "\u00b2"]  # no number for int()


def test_order_is_that_of_timms_readers(tmp_path):
    folder = splits(tmp_path, ("n02", "n010", "N1"), images=12) / "train"
    from timm.data import create_dataset

    for place in (folder, pack(folder)):
        images, reader = scan(str(place), "k"), create_dataset("", root=str(place), split="").reader
        index = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
        assert images.classes == sorted(index, key=index.get)
        theirs = [reader[index] for index in range(len(reader))]
        assert images.labels == [label for _, label in theirs]
        assert [images.content(index) for index in range(len(images.names))] == [file.read() for file, _ in theirs]


def test_images_of_a_tar_are_those_of_the_folder(tmp_path):
    splits(tmp_path)
    folder, packed = (
        open_images(data_config(tmp_path, f"data.train={place}"), "train")
        for place in (tmp_path / "train", pack(tmp_path / "train", "top"))
    )
    packed = pickle.loads(pickle.dumps(packed))  # as it gets to a worker that is spawned
    for index in range(6):
        (image, label), (other, same) = folder[index], packed[index]
        assert np.array_equal(np.asarray(image), np.asarray(other)) and label == same == index // 3


def test_tar_of_one_tar_a_class(tmp_path):
    folder = splits(tmp_path) / "train"
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        for name in ("bee", "ant"):
            tar.add(pack(folder / name), arcname=f"{name}.tar")
    images, expected = scan(str(tmp_path / "outer.tar"), "k"), scan_without_tars(folder)
    assert images.classes == ["ant", "bee"] and images.names == expected.names
    assert [images.content(i) for i in range(6)] == [expected.content(i) for i in range(6)]


def scan_without_tars(folder):
    for path in folder.glob("*.tar"):
        path.unlink()
    return scan(str(folder), "k")


# What is left out


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "DESKTOP.INI", "._0.jpg", ".gitignore", "0.png:Zone.Identifier", ".nfs0000012"]
)
def test_service_files_are_left_out_and_counted(tmp_path, name, as_given):
    folder = splits(tmp_path) / "train"
    (folder / name).write_bytes(b"x")
    (folder / "ant" / name).write_bytes(b"x")
    assert found(as_given(folder)) == (["ant", "bee"], 6, 2)


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "lost+found", "$RECYCLE.BIN", ".Trash-1000"]
)
def test_service_folders_are_left_out_and_counted_once(tmp_path, name, as_given):
    folder = splits(tmp_path) / "train"
    for index in range(2):
        picture(folder / name / f"{index}.png")
        picture(folder / "ant" / name / f"{index}.png")
    picture(folder / name / "deep" / "0.png")
    assert found(as_given(folder)) == (["ant", "bee"], 6, 2)


def test_record_counts_what_was_left_out(tmp_path):
    from dk_bench.config import load_config
    from dk_bench.training import evaluate, run_folder, train

    splits(tmp_path / "data")
    for name in ("train/.DS_Store", "val/ant/Thumbs.db", "val/bee/._1.png"):
        (tmp_path / "data" / name).write_bytes(b"x")
    data = [f"data.{split}={tmp_path}/data/{split}" for split in ("train", "val")]
    config = load_config(
        None,
        [
            "data.source=timm",
            *data,
            "data.size=32",
            "data.batch_size=2",
            "data.workers=0",
            f"output={tmp_path}",
            "model.name=test_resnetdw",
            "optim.epochs=1",
            "optim.warmup_epochs=0",
            "trainer.accelerator=cpu",
            "wandb.mode=disabled",
        ],
    )
    record = train(config)
    assert record.data["left_out"] == 3 and record.data["name"] == "data"
    assert evaluate(run_folder(config) / "last.ckpt").data["left_out"] == 2


# What is an error


def test_stray_files_are_named(tmp_path, as_given):
    folder = splits(tmp_path) / "train"
    for name in ("montage.png", "labels.csv", "ant/notes", "bee/0.png.part", "bee/.png"):
        (folder / name).write_bytes(b"x")
    text = fault(as_given(folder))
    assert "5 entries are not used in" in text and text.count("(") == 4
    assert "ant/notes (no image by its name's end)" in text and "..." in text
    for name in ("labels.csv", "ant/notes", "bee/0.png.part", "bee/.png"):
        (folder / name).unlink()
    text = fault(as_given(folder))
    assert "1 entry is not used in" in text and "montage.png (lies beside the folders of the classes)" in text
    assert "expected a folder with one folder of images a class, or a tar of such a folder, and nothing else" in text


def test_formats_that_pillow_does_not_decode_are_named(tmp_path, as_given):
    folder = splits(tmp_path) / "train"
    for suffix in ("pdf", "mpg", "h5", "svg", "heic", "npy"):
        (folder / "ant" / f"0.{suffix}").write_bytes(b"x")
    assert "6 entries are not used" in fault(as_given(folder))


def test_classes_without_images_are_named(tmp_path, as_given):
    folder = splits(tmp_path) / "train"
    (folder / "cat").mkdir()
    (folder / "dog").mkdir()
    (folder / "dog" / ".gitkeep").touch()
    assert "/cat, dog, expected some in the folder of every class" in fault(as_given(folder))


def test_deeper_layouts_are_named(tmp_path, as_given):
    folder = splits(tmp_path) / "train"
    picture(folder / "ant" / "images" / "0.png")
    text = fault(as_given(folder))
    assert "ant/images" in text and ("inside the folder of a class" in text or "lies deeper" in text)


def test_images_in_a_folder_of_every_class_are_no_class_images(tmp_path, as_given):
    for name in ("ant", "bee"):
        picture(tmp_path / "train" / name / "images" / "0.png")
    assert "ant/images" in fault(as_given(tmp_path / "train"))


def test_groups_of_classes_are_named(tmp_path, as_given):
    for name in ("insects/ant", "insects/bee", "pets/ant"):
        picture(tmp_path / "train" / name / "0.png")
    assert "insects/ant" in fault(as_given(tmp_path / "train"))


def test_splits_are_no_classes(tmp_path, as_given):
    assert "These look like splits: name one of them, as train" in fault(as_given(splits(tmp_path / "both")))
    for split in ("train", "val"):
        picture(tmp_path / "flat" / split / "0.png")
    assert "holds train, val, which are splits and no classes" in fault(as_given(tmp_path / "flat"))


def test_one_folder_above_the_classes_is_told(tmp_path):
    splits(tmp_path / "photos")
    (tmp_path / "photos" / "val").rename(tmp_path / "val")
    (tmp_path / "photos" / "train").rename(tmp_path / "photos" / "all")
    assert "If the classes are in it, name the folder all itself" in fault(tmp_path / "photos")
    assert found(pack(tmp_path / "photos")) == (["ant", "bee"], 6, 0)  # in a tar there is no other way to name it


def test_tiny_imagenet_is_told_how_to_be_put(tmp_path, as_given):
    for name in ("n01", "n02"):
        picture(tmp_path / "train" / name / "images" / f"{name}_0.png")
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("n01_0.png 0 0 1 1\n")
        picture(tmp_path / "val" / "images" / f"val_{name}.png")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_n01.png\tn01\t0\t0\t1\t1\n")
    assert "This is TinyImageNet's train: move the images of every CLASS/images to CLASS" in fault(
        as_given(tmp_path / "train")
    )
    assert "TinyImageNet's val: move every image to a folder of the class that val_annotations.txt says" in fault(
        as_given(tmp_path / "val")
    )
    (tmp_path / "val" / "val_annotations.txt").unlink()
    assert "only one class, images" in fault(as_given(tmp_path / "val"))


def test_empty_files_are_named(tmp_path, as_given):
    folder = splits(tmp_path) / "train"
    (folder / "bee" / "1.png").write_bytes(b"")
    assert "bee/1.png (an empty file)" in fault(as_given(folder))


def test_names_that_a_file_system_may_not_tell_apart_are_named():
    for one, other in (("ant", "Ant"), ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"))):
        listing = Listing(files=[f"{one}/0.png", f"{other}/0.png"], folders=[one, other])
        with pytest.raises(UserError, match="differ only in capitals or in how letters are encoded") as error:
            arrange(listing, "place", "data.train")
        assert ascii(one) in str(error.value) and ascii(other) in str(error.value)
    with pytest.raises(UserError, match=r"'ant\\udcff' is no name of a class, expected plain text in UTF-8"):
        arrange(Listing(files=["ant\udcff/0.png", "b/0.png"]), "place", "data.train")


def test_only_one_class_is_named(tmp_path, as_given):
    place = as_given(splits(tmp_path, ("ant",)) / "train")
    assert f"{place}: only one class, ant, expected two or more" in fault(place)


# Links


def test_linked_folders_and_files_are_followed(tmp_path):
    splits(tmp_path / "store")
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "train" / "bee").symlink_to(tmp_path / "store" / "train" / "bee")
    for path in (tmp_path / "store" / "train" / "ant").iterdir():
        (tmp_path / "train" / "ant" / path.name).symlink_to(path)
    assert found(tmp_path / "train") == (["ant", "bee"], 6, 0)


def test_links_that_loop_or_name_something_twice_are_named(tmp_path):
    folder = splits(tmp_path) / "train"
    cases = {
        "self": (folder, "self (the same folder as the folder itself, by a link)"),
        "ant2": (folder / "ant", "ant2 (the same folder as ant, by a link)"),
        "ant/loop": ("..", "ant/loop (a folder inside the folder of a class, by a link to ..)"),
        "bee/again.png": (folder / "bee" / "0.png", "bee/again.png (the same file as bee/0.png, by a link)"),
        "bee/other.png": (folder / "ant" / "0.png", "bee/other.png (the same file as ant/0.png, by a link)"),
        "ant/lost.png": ("nowhere.png", "ant/lost.png (a link that leads nowhere)"),
        "lost": ("nowhere", "lost (a link that leads nowhere)"),
    }
    for name, (target, text) in cases.items():
        (folder / name).symlink_to(target)
        assert text in fault(folder)
        (folder / name).unlink()
    for name in ("a.png", "b.png"):
        (folder / "ant" / name).symlink_to(picture(tmp_path / "elsewhere.png"))
    assert "ant/b.png (the same file as ant/a.png, by a link)" in fault(folder)


def test_what_is_no_file_is_named(tmp_path):
    folder = splits(tmp_path) / "train"
    os.mkfifo(folder / "ant" / "pipe.png")
    assert "ant/pipe.png (neither file nor folder)" in fault(folder)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder, scandir = splits(tmp_path) / "train", os.scandir

    def refuse(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "train/bee cannot be read: Permission denied" in fault(folder)


# Tars


@pytest.fixture
def tar(tmp_path):
    """A function that writes a tar of two classes, with what another one adds; and the bytes of an image."""
    content = picture(tmp_path / "0.png").read_bytes()

    def write(more=lambda tar, content: None):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in ("ant/0.png", "ant/1.png", "bee/0.png"):
                add(tar, name, content)
            more(tar, content)
        return tmp_path / "a.tar"

    return write


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (lambda tar, c: add(tar, "bee/0.png", c), "bee/0.png (is there twice)"),
        (lambda tar, c: add(tar, "./bee//0.png", c), "bee/0.png (is there twice)"),
        (lambda tar, c: add(tar, "bee/1.png", type=tarfile.LNKTYPE, linkname="ant/0.png"), "bee/1.png (a link)"),
        (lambda tar, c: add(tar, "bee/1.png", type=tarfile.SYMTYPE, linkname="0.png"), "bee/1.png (a link)"),
        (lambda tar, c: add(tar, "cat", type=tarfile.SYMTYPE, linkname="ant"), "cat (a link)"),
        (lambda tar, c: add(tar, "bee/p.png", type=tarfile.FIFOTYPE), "bee/p.png (neither file nor folder)"),
        (lambda tar, c: add(tar, "bee/../0.png", c), "bee/../0.png (leads out of the tar)"),
        (lambda tar, c: add(tar, "cat", type=tarfile.DIRTYPE), "/cat, expected some in the folder of every class"),
        (lambda tar, c: add(tar, "cat/0.txt", c), "cat/0.txt (no image by its name's end)"),
    ],
)
def test_what_a_tar_must_not_hold_is_named(tar, more, text):
    assert found(tar()) == (["ant", "bee"], 3, 0)
    assert text in fault(tar(more))


def test_tar_cut_short_anywhere_is_named(tar):
    path = tar()
    whole = path.read_bytes()
    with tarfile.open(path) as opened:
        opened.getmembers()
        end = opened.offset  # of the last member; a block of zeros follows
    for length in range(0, end + 1, 256):
        path.write_bytes(whole[:length])
        assert "cannot be read as a tar" in fault(path), length
    path.write_bytes(whole[: end + 512])
    assert found(path) == (["ant", "bee"], 3, 0)


def test_damaged_header_does_not_end_a_tar(tar):
    path = tar()
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as opened:
        content[opened.getmembers()[1].offset + 100] ^= 1
    path.write_bytes(content)
    assert "cannot be read as a tar: it is damaged after ant/0.png" in fault(path)


def test_two_tars_in_one_file_are_named(tar):
    path = tar()
    path.write_bytes(2 * path.read_bytes())
    assert "there is more behind its end, after bee/0.png: several tars in one file" in fault(path)


def test_inner_tar_cut_short_is_named(tmp_path, tar):
    inner = tar().read_bytes()
    with tarfile.open(tmp_path / "outer.tar", "w") as outer:
        add(outer, "x.tar", inner[:1024])
    assert "cannot be read as a tar" in fault(tmp_path / "outer.tar")


def test_compressed_tar_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as packed:
        add(packed, "ant/0.png", b"x")
    assert "it is compressed, expected a plain one" in fault(tmp_path / "a.tar")


def test_tar_that_has_become_shorter_is_named(tmp_path):
    splits(tmp_path)
    path = pack(tmp_path / "train")
    images = open_images(data_config(tmp_path, f"data.train={path}"), "train")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"train\.tar: image bee/2\.png cannot be read: the tar has become shorter"):
        images[5]


def test_images_are_read_at_once_by_several_processes(tmp_path):
    """A file that was opened before processes are forked has one position for all of them."""
    from torch.utils.data import DataLoader

    splits(tmp_path, images=20)
    images = open_images(data_config(tmp_path, f"data.train={pack(tmp_path / 'train')}"), "train")
    expected = [np.asarray(images[index][0]) for index in range(40)]
    got = [image for batch in DataLoader(images, num_workers=2, collate_fn=list) for image, _ in batch]
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(got, expected, strict=True))
