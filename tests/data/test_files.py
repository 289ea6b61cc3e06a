"""Images from folders and tars, and what is said of those that are missing, empty or damaged."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dk_bench.classification.data import ClassificationData
from dk_bench.config import load_config
from dk_bench.data.draws import uniform
from dk_bench.data.sources import open_images
from dk_bench.data.transforms import EvalTransform, TrainTransform
from dk_bench.errors import UserError


def jpeg(seed, size=(40, 30)):
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


def make_folder(path, classes=("ant", "bee"), images=3):
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(images):
            (path / name / f"{i}.jpg").write_bytes(jpeg(100 * number + i))
    return path


def make_tar(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, arcname=".")
    return folder.with_suffix(".tar")


def config_for(train, val, *overrides):
    return load_config(
        None,
        [
            "data.source=timm",
            f"data.train={train}",
            f"data.val={val}",
            "data.size=16",
            "data.batch_size=2",
            "data.workers=0",
            *overrides,
        ],
    ).data


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_reads_folder_and_tar_alike(tmp_path, packed):
    folder = make_folder(tmp_path / "train")
    images = open_images(config_for(make_tar(folder) if packed else folder, folder), "train")
    assert images.classes == ["ant", "bee"] and len(images) == 6
    for index in range(6):
        image, label = images[index]
        assert (image.size, image.mode, label) == ((40, 30), "RGB", index // 3)
        expected = Image.open(io.BytesIO((folder / ["ant", "bee"][index // 3] / f"{index % 3}.jpg").read_bytes()))
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image_is_named_and_not_skipped(tmp_path, packed, workers):
    folder = make_folder(tmp_path / "train")
    damaged = folder / "bee" / "1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:700])  # of about 1400
    data = ClassificationData(config_for(folder, make_tar(folder) if packed else folder, f"data.workers={workers}"), 0)
    with pytest.raises(UserError, match=r"^\S+: image \S*bee/1\.jpg cannot be read: [^\n]*(?i:truncated)[^\n]*$"):
        list(data.val_dataloader())


def test_file_that_is_no_image_is_named(tmp_path):
    folder = make_folder(tmp_path / "train")
    (folder / "ant" / "2.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"ant/2\.jpg cannot be read: not an image"):
        open_images(config_for(folder, folder), "train")[2]


def test_names_that_are_no_text_are_named_all_the_same(tmp_path):
    """In an error that a record can hold."""
    folder = make_folder(tmp_path / "train")
    (folder / "ant" / "9\udcff.jpg").write_text("not a picture")
    with pytest.raises(UserError, match=r"ant/9\\udcff\.jpg cannot be read: not an image") as error:
        open_images(config_for(folder, folder), "train")[3]
    str(error.value).encode()


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'data\.train': .*nowhere does not exist, expected a folder with one folder"):
        open_images(config_for(tmp_path / "nowhere", tmp_path), "train")


def test_unset_path_is_named():
    with pytest.raises(UserError, match=r"'data\.val' is not set, expected a folder.*data\.val="):
        open_images(load_config(None, ["data.source=timm"]).data, "val")


def test_empty_folder_and_empty_tar_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", make_tar(tmp_path / "empty")):
        with pytest.raises(UserError, match=r"'data\.val': no images in .*empty"):
            open_images(config_for(place, place), "val")


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "b.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UserError, match=r"a\.zip is a file but no \.tar"):
        open_images(config_for(tmp_path / "a.zip", tmp_path), "train")
    with pytest.raises(UserError, match=r"b\.tar cannot be read as a tar"):
        open_images(config_for(tmp_path / "b.tar", tmp_path), "train")


def test_stream_without_order_is_refused():
    config = load_config(None, ["data.source=timm", "data.reader=hfids/imagenet", "data.train=train"]).data
    with pytest.raises(UserError, match=r"'hfids/imagenet', a stream, which has no order to resume in"):
        open_images(config, "train")


def test_unknown_named_data_set_is_named():
    config = load_config(None, ["data.source=timm", "data.reader=torch/nosuch", "data.train=train"]).data
    with pytest.raises(UserError, match=r"'data\.reader': 'torch/nosuch'.*nosuch"):
        open_images(config, "train")


def test_classes_of_train_and_val_must_match(tmp_path):
    train = make_folder(tmp_path / "train", ("ant", "bee", "cat"))
    val = make_folder(tmp_path / "val", ("ant", "bee", "dog"))
    with pytest.raises(UserError, match=r"3 classes.*only in train: cat; only in val: dog"):
        ClassificationData(config_for(train, val), 0).train_dataloader()


def test_batch_larger_than_the_data(tmp_path):
    folder = make_folder(tmp_path / "train")
    with pytest.raises(UserError, match=r"'data\.batch_size' is 7, but there are 6 train images"):
        ClassificationData(config_for(folder, folder, "data.batch_size=7"), 0).train_dataloader()


def test_evaluation_resizes_the_shorter_side_then_crops_the_centre():
    config = load_config(None, ["data.size=224", "data.mean=[0,0,0]", "data.std=[1,1,1]"]).data
    ramp = np.broadcast_to((np.arange(512) // 2).astype(np.uint8)[None, :, None], (256, 512, 3))
    (pixels,) = EvalTransform(config)([torch.from_numpy(ramp.transpose(2, 0, 1)[None].copy())])
    assert pixels.shape == (3, 224, 224)  # shorter side 256 stays, columns 144 to 367 remain
    expected = torch.from_numpy(ramp[16:240, 144:368].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels, expected)


def test_training_transform_follows_the_configuration():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))

    def distinct(*overrides):
        transform = TrainTransform(load_config(None, ["data.size=64", "data.crop_pct=1", *overrides]).data)
        batch = transform([image] * 20, uniform(0, [0] * 20, range(20)))
        return len({pixels.numpy().tobytes() for pixels in batch})

    plain = ("data.augment.scale=null", "data.augment.flip=0", "data.augment.color_jitter=0")
    assert distinct(*plain) == 1
    assert distinct(*plain, "data.augment.flip=0.5") == 2
    assert distinct(*plain, "data.augment.color_jitter=0.4") == 20
    assert distinct(*plain, "data.augment.scale=[0.1,0.5]") == 20
