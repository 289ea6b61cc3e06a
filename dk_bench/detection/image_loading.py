"""Images for mmdet's pipelines by the one function that opens images, `dk_bench.data.pixels.open_image`.

Ordinary JPEG and PNG files come out as mmcv's own transform reads them, bit for bit. Otherwise orientation and depth
are as in classification, boxes are in the coordinates of the image as their annotation knows it, and a file that is
damaged, or of another size than annotated, is an error.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile as FromFile
from mmdet.datasets.transforms import LoadMultiChannelImageFromFiles
from mmdet.registry import TRANSFORMS
from mmengine import fileio

from dk_bench.data.pixels import open_image
from dk_bench.errors import UserError

REMOTE = "://"
# Options of mmcv's transform -> their values by which it gives colours of eight bits.
OPTIONS = {
    "color_type": ("color",),
    "imdecode_backend": ("cv2", "pillow"),
    "ignore_empty": (False,),
    "file_client_args": (None,),
}


@TRANSFORMS.register_module(name="LoadImageFromFile")
class LoadImage(FromFile):
    """mmdet's ``LoadImageFromFile`` wherever a configuration names something of dk_bench, or our runner runs it.

    mmdet's tools look for the transform under that name, so ours stands in mmdet's registry, before mmcv's. With
    options that ask for other pixels than colours of eight bits it does what mmcv's does; our runner refuses those.
    """

    @property
    def fault(self) -> str | None:
        """Returns the option that asks for something else, or None."""
        for name, known in OPTIONS.items():
            if (value := getattr(self, name)) not in known:
                return f"{name} is {value!r}, expected {known[0]!r}"
        return None

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds ``img``, (height, width, 3) of uint8 in the order blue, green, red, and its size. ``results`` has
        ``img_path`` and, if annotated, ``width`` and ``height``. Raises UserError as `open_image` does."""
        if self.fault:
            return super().transform(results)
        file = path = results["img_path"]
        if self.backend_args or REMOTE in path:
            file = io.BytesIO(fileio.get(path, backend_args=self.backend_args))
        image = open_image(file, stated_size(results), name=f"image {path}")
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        results["img"] = pixels.astype(np.float32) if self.to_float32 else pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


def stated_size(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the (width, height) that an annotation states, or None."""
    size = item.get("width"), item.get("height")
    return None if None in size else size


def check_pipeline(images: Any, key: str) -> None:
    """Raises UserError where a data set, no wrapper, reads images in another way than all else does."""
    for transform in getattr(getattr(images, "pipeline", None), "transforms", ()):
        if not isinstance(transform, FromFile | LoadMultiChannelImageFromFiles):
            continue
        fault = transform.fault if isinstance(transform, LoadImage) else "other pixels than in all else"
        if fault:
            name = f"{type(transform).__module__.partition('.')[0]}.{type(transform).__name__}"
            raise UserError(f"key '{key}.pipeline': {name}: {fault}; expected LoadImageFromFile as it is by default")
