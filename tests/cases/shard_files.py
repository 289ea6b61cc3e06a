"""Shards of small images for tests, as webdataset writes them."""

import io
import json
import tarfile

import numpy as np
from image_files import add
from PIL import Image

from dk_bench.config import load_config

PER_SHARD = 1000


def jpegs(count, seed=0, side=8):
    """So many different JPEG files of noise, as bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for pixels in noise:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=60)
        yield stream.getvalue()


def write_shard(path, images, labels, first=0):
    """A shard of samples: a JPEG, a label and what else is known, by the sample's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True), start=first):
            add(tar, f"{number:06d}.jpg", image)
            add(tar, f"{number:06d}.cls", str(label).encode())
            add(tar, f"{number:06d}.json", json.dumps({"label": label, "number": number}).encode())
    return path


def write_split(root, split, count, classes=10, per_shard=PER_SHARD, seed=0):
    """Shards ``SPLIT-0000.tar`` and so on of images whose labels go round; returns their pattern."""
    files, shards = jpegs(count, seed), -(-count // per_shard)
    for shard in range(shards):
        numbers = range(shard * per_shard, min((shard + 1) * per_shard, count))
        images = [next(files) for _ in numbers]
        write_shard(root / f"{split}-{shard:04d}.tar", images, [n % classes for n in numbers], numbers[0])
    return f"{split}-{{0000..{shards - 1:04d}}}.tar"


def write_info(root, **splits):
    """``_info.json`` of splits: of each the numbers of samples of its shards."""
    listed = {
        split: {
            "name": split,
            "filenames": [f"{split}-{shard:04d}.tar" for shard in range(len(lengths))],
            "shard_lengths": lengths,
            "num_samples": sum(lengths),
        }
        for split, lengths in splits.items()
    }
    (root / "_info.json").write_text(json.dumps({"splits": listed}))


def shard_config(root, train, val="val-0000.tar", *overrides):
    """The section data of shards below ``root``."""
    settings = [
        "data.source=timm",
        "data.reader=wds/tiny",
        f"data.root={root}",
        f"data.train={train}",
        f"data.val={val}",
        "data.size=8",
        "data.batch_size=50",
        "data.workers=0",
    ]
    return load_config(None, [*settings, *overrides]).data
