"""A sheet of a detection configuration's training images with their boxes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS
from PIL import Image, ImageDraw, ImageFont

from dk_bench.data.pixels import open_image
from dk_bench.detection.image_loading import stated_size
from dk_bench.detection.mmengine_config import DetectionConfig, build, use_scope
from dk_bench.errors import UserError

COLUMNS, MARGIN, LONGEST = 5, 4, 256  # LONGEST: longer images are shown smaller
OBJECT, CROWD = "yellow", "red"


def sheet(config: DetectionConfig, rows: int) -> Image.Image:
    """Returns the first ``rows`` x 5 training images, as they are before any augmentation, with boxes and class names;
    a crowd's box is red. RGB. Raises UserError for data that cannot be opened."""
    use_scope(config.cfg)
    settings = dict(config.cfg.train_dataloader.get("dataset") or {}) | {"pipeline": []}
    images = build(DATASETS, settings, "train_dataloader.dataset")
    count = min(rows * COLUMNS, len(images))
    if count == 0:
        raise UserError("key 'train_dataloader.dataset': no images to draw")
    shown = [_drawn(images[index], images.metainfo["classes"]) for index in range(count)]
    side = MARGIN + max(max(image.size) for image in shown)
    page = Image.new("RGB", (MARGIN + side * COLUMNS, MARGIN + side * math.ceil(count / COLUMNS)), "white")
    for index, image in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        page.paste(image, (MARGIN + side * column, MARGIN + side * row))
    return page


def _drawn(item: Mapping[str, Any], classes: tuple[str, ...]) -> Image.Image:
    image = open_image(item["img_path"], stated_size(item))
    shrink = min(1.0, LONGEST / max(image.size))
    image = image.resize([max(1, round(shrink * side)) for side in image.size])
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    for instance in item["instances"]:
        box = [shrink * edge for edge in instance["bbox"]]
        color = CROWD if instance["ignore_flag"] else OBJECT
        outline(pen, box, color)
        pen.text((box[0] + 2, box[1] + 1), classes[instance["bbox_label"]], fill=color, font=font)
    return image


def outline(pen: ImageDraw.ImageDraw, box: Sequence[float], color: Any, width: int = 1) -> None:
    """Draws the pixels just inside a box, (left, top, right, bottom) in pixels from the image's corner."""
    left, top, right, bottom = box
    pen.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=color, width=width)
