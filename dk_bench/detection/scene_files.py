"""The procedural detection data as files in COCO's format, and as mmdet's data set: no download.

`dk_bench.detection.scenes` draws them. In a configuration, ``scenes`` holds the settings; what it leaves out stands at
the default::

    dataset=dict(type='dk_bench.ProceduralCoco', data_root='data/procedural_det', split='train',
                 scenes=dict(train_images=400, val_images=100, size=256, seed=0, classes=10))
"""

import dataclasses
import glob
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset

from dk_bench.data.procedural import SHAPES, SPLITS
from dk_bench.detection.scenes import SHARES, Scenes
from dk_bench.errors import UserError, system_errors
from dk_bench.files import read_json, write_atomically
from dk_bench.registry import DATASETS
from dk_bench.runs.lock import wait_for

MARKER = "dataset.json"  # what the folder was drawn by; a folder that has it is whole
VERSION = 1  # of the drawing: one more whenever the same settings give other images
COLOURS = "e63c3c 3ca0e6 46c85a f0b428 a05adc 28c8be f078b4 969696 b4783c 78c828"  # of the classes, in drawings


def write_dataset(folder: str | Path, **settings: Any) -> Path:
    """Writes images/*.png and annotations/train.json, val.json unless the folder holds them, and returns the folder.

    ``settings`` are fields of `Scenes`. The folder appears whole or not at all. Of several processes one writes and the
    others wait; what a killed one left is removed. Takes some 0.15 s an image of 256 x 256.

    Raises UserError for a setting unknown or out of range, a folder of other data or settings, and one not writable.
    """
    folder, names = Path(folder), {field.name for field in dataclasses.fields(Scenes)}
    if unknown := sorted(settings.keys() - names):
        raise UserError(f"procedural data: unknown setting {unknown[0]!r}, expected {', '.join(sorted(names))}")
    scenes = Scenes(**settings)
    if _is_written(folder, scenes):
        return folder
    with system_errors(f"procedural data cannot be written to {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with wait_for(folder.with_name(f".{folder.name}.lock")):
            if not _is_written(folder, scenes):  # by whom we waited for
                _write_whole(folder, scenes)
    return folder


def _write_whole(folder: Path, scenes: Scenes) -> None:
    """Writes beside the folder, which then takes its name; nobody else may be at it. Raises OSError."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, scenes)
        if folder.is_dir():
            folder.rmdir()  # an empty one; only where a folder is not replaced, as on Windows, is this needed
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@DATASETS.register_module()
class ProceduralCoco(CocoDataset):
    """mmdet's COCO data set of the procedural images, which are written under ``data_root`` first if absent.

    ``split`` is train or val, ``scenes`` what `write_dataset` takes; all else is CocoDataset's. Raises UserError as
    `write_dataset` does, also for a ``data_root`` that is empty and a split there is not.
    """

    METAINFO = {"classes": SHAPES, "palette": [tuple(bytes.fromhex(colour)) for colour in COLOURS.split()]}

    def __init__(
        self, *, data_root: str, split: str = "train", scenes: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        if not data_root:
            raise UserError(f"ProceduralCoco: data_root is {data_root!r}, expected a folder for the images")
        if split not in SPLITS:
            raise UserError(f"ProceduralCoco: split is {split!r}, expected one of {', '.join(SPLITS)}")
        scenes = dict(scenes or {})
        write_dataset(data_root, **scenes)
        settings.setdefault("ann_file", f"annotations/{split}.json")
        settings.setdefault("data_prefix", {"img": "images/"})
        if classes := scenes.get("classes"):
            shown = {key: values[:classes] for key, values in self.METAINFO.items()}
            settings["metainfo"] = shown | dict(settings.get("metainfo") or {})
        super().__init__(data_root=data_root, **settings)


def _is_written(folder: Path, scenes: Scenes) -> bool:
    """Tells whether the folder holds this very data. Raises UserError where it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and not (folder / MARKER).exists():
        raise UserError(f"{folder}: holds no procedural data and is not empty, expected no such folder")
    found = read_json(folder / MARKER)
    if found != (wanted := _settings(scenes)):
        raise UserError(f"{folder}: holds procedural data of {found}, expected {wanted}: remove it or name another")
    return True


def _settings(scenes: Scenes) -> dict[str, Any]:
    """Returns what marks the data: settings younger than folders already written only where they differ."""
    settings = {"version": VERSION, **dataclasses.asdict(scenes)}
    shares = list(settings.pop("shares"))
    return settings | ({"shares": shares} if shares != list(SHARES) else {})


def _write(folder: Path, scenes: Scenes) -> None:
    """Writes both splits and, last, the marker."""
    (folder / "images").mkdir(parents=True)
    image_ids, annotation_ids = itertools.count(1), itertools.count(1)  # pycocotools takes 0 for no annotation
    for split in SPLITS:
        content = _coco(scenes, split, image_ids, annotation_ids)
        for index, image in enumerate(content["images"]):
            scenes.image(split, index).save(folder / "images" / image["file_name"], compress_level=1)  # noise anyway
        write_atomically(folder / "annotations" / f"{split}.json", json.dumps(content) + "\n")
    write_atomically(folder / MARKER, json.dumps(_settings(scenes), indent=1) + "\n")


def _coco(scenes: Scenes, split: str, image_ids: Iterator[int], annotation_ids: Iterator[int]) -> dict[str, Any]:
    """Returns a split's annotation file; it takes the next ids, so that no two splits share one."""
    content: dict[str, Any] = {
        "info": {"description": f"Procedural images of deformable shapes, {split}", **_settings(scenes)},
        "categories": [{"id": n, "name": name} for n, name in enumerate(SHAPES[: scenes.classes], start=1)],
        "images": [],
        "annotations": [],
    }
    for index in range(scenes.count(split)):
        image_id, name = next(image_ids), f"{split}_{index:06}.png"
        content["images"].append({"id": image_id, "file_name": name, "width": scenes.size, "height": scenes.size})
        for annotation in scenes.annotations(split, index):
            content["annotations"].append({"id": next(annotation_ids), "image_id": image_id, **annotation})
    return content
