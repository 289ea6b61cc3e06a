"""Holding images out: two tars that are the whole, each class in both, and nothing half-written."""

import io
import tarfile

import hold_out
import pytest
from image_files import data_config, pack, picture

from dk_bench.classification.data import ClassificationData
from dk_bench.data.scan import scan


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(("ant", "bee")):
        for index in range(5 + number):
            picture(tmp_path / "images" / name / f"{index}.png", seed=10 * number + index)
    return tmp_path / "images"


def content(files):
    return {
        f"{files.classes[files.labels[i]]}/{files.names[i].rpartition('/')[2]}": files.content(i)
        for i in range(len(files))
    }


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_both_parts_are_the_whole(images, tmp_path, capsys, packed):
    place = pack(images) if packed else images
    rest, part = tmp_path / "rest.tar", tmp_path / "part.tar"
    assert hold_out.main([str(place), str(rest), str(part), "--every", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{rest}: 6 images of 2 classes", f"{part}: 5 images of 2 classes"]
    found = [content(scan(str(path), "data.val")) for path in (rest, part)]
    assert set(found[1]) == {"ant/1.png", "ant/3.png", "bee/1.png", "bee/3.png", "bee/5.png"}
    assert found[0] | found[1] == content(scan(str(images), "data.val")) and not set(found[0]) & set(found[1])
    ClassificationData(data_config(tmp_path, f"data.train={rest}", f"data.val={part}"), 0).check_splits()


def test_same_images_give_the_same_bytes(images, tmp_path):
    tars = [[tmp_path / f"{name}{time}.tar" for name in ("rest", "part")] for time in (1, 2)]
    assert [hold_out.main([str(images), *map(str, pair)]) for pair in tars] == [0, 0]
    assert [path.read_bytes() for path in tars[0]] == [path.read_bytes() for path in tars[1]]
    with tarfile.open(fileobj=io.BytesIO(tars[0][1].read_bytes())) as tar:
        assert tar.getnames() == ["ant/4.png", "bee/4.png"]


@pytest.mark.parametrize("every", [0, 1, 6])
def test_every_class_needs_images_on_both_sides(images, tmp_path, capsys, every):
    assert hold_out.main([str(images), str(tmp_path / "a.tar"), str(tmp_path / "b.tar"), "--every", str(every)]) == 2
    assert f"--every {every}: expected 2 to 5, the images of the smallest class" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tar"))


def test_bad_places_are_one_sentence(images, tmp_path, capsys):
    assert hold_out.main([str(tmp_path / "none"), str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert hold_out.main([str(images), str(tmp_path / "file" / "a.tar"), str(tmp_path / "b.tar")]) == 2
    assert "a.tar: cannot be written" in capsys.readouterr().err
