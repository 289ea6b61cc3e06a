"""Folders and tars: what counts as an image of which class, and that nothing is left out without a word."""

import os
import unicodedata

import pytest
from image_files import fault, found, pack, picture, run_config, splits

from dk_bench.data.layout import Listing, arrange, natural_key
from dk_bench.data.scan import scan
from dk_bench.errors import UserError


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
    from dk_bench.training import evaluate, run_folder, train

    splits(tmp_path / "data")
    for name in ("train/.DS_Store", "val/ant/Thumbs.db", "val/bee/._1.png"):
        (tmp_path / "data" / name).write_bytes(b"x")
    config = run_config(tmp_path / "data", tmp_path)
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
        listing = Listing(files=dict.fromkeys([f"{one}/0.png", f"{other}/0.png"]), folders=[one, other])
        with pytest.raises(UserError, match="differ only in capitals or in how letters are encoded") as error:
            arrange(listing, "place", "data.train")
        assert ascii(one) in str(error.value) and ascii(other) in str(error.value)
    with pytest.raises(UserError, match=r"'ant\\udcff' is no name of a class, expected plain text in UTF-8"):
        arrange(Listing(files=dict.fromkeys(["ant\udcff/0.png", "b/0.png"])), "place", "data.train")


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
