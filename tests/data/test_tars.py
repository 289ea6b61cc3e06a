"""Tars of images: what is read of them, and that one that is damaged or cut short is not taken for a smaller one."""

import pickle
import tarfile

import numpy as np
import pytest
from image_files import add, data_config, fault, found, pack, picture, splits

from dk_bench.data.scan import scan
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError


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
