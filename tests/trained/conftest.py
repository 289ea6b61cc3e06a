"""What several files of this folder use: one short run, on images in folders."""

import pytest
from image_files import picture
from training_cases import ONE_STEP

from dk_bench.config import load_config
from dk_bench.tasks import train

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with train/ and val/, images of several formats and sizes, whose names do not sort as numbers do."""
    root = tmp_path_factory.mktemp("photos")
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate(CLASSES):
            for index, suffix in enumerate(["png", "jpg", "bmp", "png"]):
                seed = 1000 * number + 100 * label + index
                picture(root / split / name / f"{7 * index}.{suffix}", seed, size=(30 + 5 * index, 44 - 3 * label))
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory, photos):
    """The configuration of a run on them that averaged its weights, with a spec."""
    settings = [*ONE_STEP, "model.name=test_resnetdw", "model.spec={depthwise: local, scope: 3}", "ema.decay=0.5"]
    settings += ["data.source=timm", f"data.train={photos}/train", f"data.val={photos}/val", "data.crop_pct=0.8"]
    settings += [f"output={tmp_path_factory.mktemp('run')}", "optim.lr=0.05", "optim.epochs=2"]
    config = load_config(None, settings)
    train(config)
    return config
