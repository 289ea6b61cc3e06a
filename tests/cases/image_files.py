"""Folders and tars of small images for tests."""

import io
import tarfile

import numpy as np
from PIL import Image

from dk_bench.config import load_config

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
