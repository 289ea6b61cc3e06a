"""Folders and tars of small images for tests."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from dk_bench.config import load_config
from dk_bench.data.scan import scan
from dk_bench.errors import UserError

FORMATS = {"tif": "TIFF", "jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "JPG": "JPEG", "pgm": "PPM", "dib": "BMP"}


def picture(path, seed=0, size=(12, 10), **options):
    """Writes noise in the format of the path's suffix; other pixels for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    suffix = path.suffix[1:]
    Image.fromarray(noise).save(path, FORMATS.get(suffix, suffix.upper()), **options)
    return path


def splits(root, classes=("ant", "bee"), images=3, suffix="png"):
    """train/ and val/ below ``root``, each with a folder of images a class; no two images are equal."""
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate(classes):
            for index in range(images):
                picture(root / split / name / f"{index}.{suffix}", seed=1000 * number + 100 * label + index)
    return root


def pack(folder, top="."):
    """The tar of a folder, beside it; ``top`` is what the folder is called in it."""
    path = folder.with_name(folder.name + ".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=top)
    return path


def add(tar, name, content=b"", **fields):
    """Adds a member to an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def data_config(root, *overrides):
    """The configuration of the splits below ``root``."""
    settings = [
        "data.source=timm",
        f"data.train={root}/train",
        f"data.val={root}/val",
        "data.size=16",
        "data.batch_size=2",
        "data.workers=0",
    ]
    return load_config(None, [*settings, *overrides]).data


def found(place):
    """Classes, and the numbers of images and of service files of a scan of the place."""
    images = scan(str(place), "data.train")
    return images.classes, len(images.names), images.left_out


def fault(place):
    """What a scan of the place says is wrong, which names it."""
    with pytest.raises(UserError) as error:
        scan(str(place), "data.train")
    assert str(error.value).startswith("key 'data.train': ") and str(place) in str(error.value)
    return str(error.value)


def run_config(data, output):
    """The configuration of a run of an epoch on the splits that lie in a folder."""
    return load_config(
        None,
        [
            "data.source=timm",
            *(f"data.{split}={data}/{split}" for split in ("train", "val")),
            *"data.size=32 data.batch_size=2 data.workers=0 model.name=test_resnetdw optim.epochs=1".split(),
            *"optim.warmup_epochs=0 trainer.accelerator=cpu wandb.mode=disabled".split(),
            f"output={output}",
        ],
    )
